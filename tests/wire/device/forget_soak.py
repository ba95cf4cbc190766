"""`tools/soak forget`: a day's lookups and forgets in fast motion, against a session over real unions, without a mount.

A model of the kernel looks names up, lists, opens, changes and renames, forgets some of what it knows all the time and
everything once an hour. Then nothing may be left: no node, no open file, no descriptor, no object of the union's, and
no memory that was not there after the first hours. An hour is `--rate` lookups a second for 3600 seconds; the default,
50 a second, is what a scan of 1500 files every half minute takes, round the clock.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from overlayfs_py.overlay.node import Node
from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import Opcode
from tests.wire.device import unions
from tests.wire.device.arbitrary import MANY
from tests.wire.device.fuzz import Bugs
from tests.wire.device.kernel import ROOT, Kernel
from tests.wire.device.line import Line

HOUR_S = 3600
NODES_MAX = 400
"""As many nodes are known at a time, more or less; the first to go are any."""
SETTLING_HOURS = 2
"""After which caches and the allocator have what they need."""
GROWTH_MAX_KIB = 1024
"""Of resident memory over all later hours: an allocator's noise; one node an hour would be 10 MiB a day and more."""
_CALM = 0.85
_EXCUSED = ("copy-up leaves out",)


@dataclass
class Hour:
    """What is left when everything was forgotten. `lookups` are those of all hours so far."""

    lookups: int
    left: dict[str, int]
    descriptors: int
    objects: int
    resident_kib: int


class Soak:
    """One session and the model that uses it."""

    def __init__(self, line: Line, seed: int) -> None:
        self.line = line
        self.chance = random.Random(seed)
        self.kernel = Kernel(line, self.chance)
        self.open: list[tuple[int, int]] = []

    def hour(self, lookups: int) -> Hour:
        """So many lookups and what goes with them, and then nothing any more."""
        end = self.kernel.lookups + lookups
        while self.kernel.lookups < end:
            self._step()
        for node, fh in self.open:
            self.kernel.close(node, fh)
        self.open.clear()
        self.kernel.evict_all()
        self.kernel.ask(Opcode.STATFS, ROOT)  # what came before it is done
        return Hour(
            self.kernel.lookups,
            self._left(),
            len(os.listdir("/proc/self/fd")),
            _nodes(),
            _resident_kib(),
        )

    def _left(self) -> dict[str, int]:
        dispatch, laned = self.line.dispatch, self.line.laned
        left = {
            "nodes": dispatch.known - 1,
            "files": len(dispatch._files),
            "directories": len(dispatch._directories),
        }
        if laned is not None:
            gc.collect()
            laned.settle()
            nodes, published, files, claimed = laned.lane.counts()
            left |= {"lane's nodes": nodes, "lane's files": files}
            # The root is never forgotten.
            left |= {"published": max(0, published - 1), "claimed": max(0, claimed - 1)}
        return left

    def _step(self) -> None:
        chance, kernel = self.chance, self.kernel
        directory = self._directory()
        if chance.random() < _CALM:
            kernel.look_up(directory, [self._name() for _ in range(16)])
        else:
            self._change(directory)
        kind = chance.random()
        if kind < 0.1:
            kernel.list_directory(directory)
        elif kind < 0.4:
            self._open_one()
        if chance.random() < 0.3:
            kernel.give_back_one(chance.choice(list(kernel.nodes)))
        if len(kernel.nodes) > NODES_MAX:
            ids = kernel.evictable()
            kernel.evict(chance.sample(ids, len(ids) // 2))

    def _open_one(self) -> None:
        chance, kernel = self.chance, self.kernel
        node = chance.choice(list(kernel.nodes))
        if node == ROOT or kernel.nodes[node].mode >> 12 != 0o10:
            return
        fh = kernel.open(node, chance.choice((os.O_RDONLY, os.O_RDONLY, os.O_RDWR)))
        if fh is None:
            return
        kernel.read(node, fh)
        self.open.append((node, fh))
        if len(self.open) > 8:
            kernel.close(*self.open.pop(chance.randrange(len(self.open))))

    def _change(self, directory: int) -> None:
        chance, kernel = self.chance, self.kernel
        name = self._name()
        match chance.randrange(8):
            case 0:
                kernel.create(directory, name)
            case 1:
                fixed = protocol.MKDIR_IN.pack(0o755, 0)
                kernel.make(Opcode.MKDIR, directory, b"d%d" % chance.randrange(6), fixed)
            case 2:
                kernel.make(Opcode.SYMLINK, directory, name, b"", b"target\0")
            case 3:
                node = chance.choice(list(kernel.nodes))
                kernel.make(Opcode.LINK, directory, name, protocol.LINK_IN.pack(node))
            case 4 | 5:
                kernel.remove(Opcode.UNLINK, directory, name)
            case 6:
                kernel.remove(Opcode.RMDIR, directory, b"d%d" % chance.randrange(6))
            case 7:
                kernel.rename(directory, name, self._directory(), self._name())

    def _directory(self) -> int:
        if self.chance.random() < 0.5:
            return ROOT
        directories = [id for id, known in self.kernel.nodes.items() if known.mode >> 12 == 0o4]
        return self.chance.choice(directories)

    def _name(self) -> bytes:
        kind = self.chance.random()
        if kind < 0.9:
            return b"f%d" % self.chance.randrange(MANY)
        return self.chance.choice((b"a", b"b", b"c", b"dir", b"link", b"d1", b"absent"))


def _nodes() -> int:
    """The union's nodes that anything still refers to, whoever it is."""
    gc.collect()
    return sum(isinstance(found, Node) for found in gc.get_objects())


def _resident_kib() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def soak(kind: str, hours: int, lookups: int, seed: int, directory: str) -> Iterator[Hour]:
    """Hours of so many lookups each, over a union of `kind`."""
    with (
        tempfile.TemporaryDirectory(dir=directory) as home,
        unions.union(kind, home) as overlay,
    ):
        line = Line(overlay, laned=True)
        try:
            running = Soak(line, seed)
            for _ in range(hours):
                yield running.hour(lookups)
        finally:
            line.close()


def complaints(hours: list[Hour]) -> list[str]:
    """What is left that should not be."""
    found = []
    for number, hour in enumerate(hours, 1):
        left = {what: count for what, count in hour.left.items() if count}
        if left:
            found.append(f"hour {number}: left are {left}")
    settled = hours[min(SETTLING_HOURS, len(hours)) - 1]
    last = hours[-1]
    if last.descriptors > settled.descriptors:
        found.append(f"{last.descriptors - settled.descriptors} descriptors more than before")
    if last.objects > settled.objects:
        found.append(f"{last.objects - settled.objects} nodes of the union more than before")
    if last.resident_kib - settled.resident_kib > GROWTH_MAX_KIB:
        found.append(f"{last.resident_kib - settled.resident_kib} KiB more than before")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/soak forget", description=__doc__)
    parser.add_argument("--hours", type=int, default=24, help="default %(default)s")
    parser.add_argument(
        "--rate", type=float, default=50, help="lookups a second (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--union", choices=unions.KINDS, help="default: one after the other")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="default %(default)s")
    chosen = parser.parse_args(arguments)
    bugs: list[str] = []
    logging.getLogger("overlayfs_py").addHandler(Bugs(bugs, _EXCUSED))
    lookups = round(chosen.rate * HOUR_S)
    for kind in [chosen.union] if chosen.union else unions.KINDS:
        began = time.monotonic()
        hours: list[Hour] = []
        for hour in soak(kind, chosen.hours, lookups, chosen.seed, chosen.directory):
            hours.append(hour)
            print(
                f"{kind}, hour {len(hours)}: {hour.resident_kib} KiB, {hour.objects} nodes",
                flush=True,
            )
            if bugs:
                break
        bugs += complaints(hours)
        took_s = time.monotonic() - began
        settled, last = hours[min(SETTLING_HOURS, len(hours)) - 1], hours[-1]
        print(
            f"{kind}: {len(hours)} h at {chosen.rate:g} lookups a second = {last.lookups} lookups, all forgotten, "
            f"in {took_s:.0f} s (seed {chosen.seed}): left {sum(last.left.values())} nodes and files, "
            f"descriptors {last.descriptors - settled.descriptors:+d}, objects {last.objects - settled.objects:+d}, "
            f"memory {last.resident_kib - settled.resident_kib:+d} KiB since hour {SETTLING_HOURS}"
        )
        if bugs:
            print("\n".join(bugs))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
