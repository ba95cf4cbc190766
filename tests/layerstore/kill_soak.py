"""`tools/soak kill`: the store's commands killed with SIGKILL at random moments, any number of times.

A world of a few images, and an upper: imports (with and without kept blobs),
commits, removals, collections, scrubs. After each kill fsck must find nothing wrong and the same
command must succeed when it is given again; at the end no object that an image needs may be lost or
damaged, and after a collection nothing may be there that nobody needs. A seed decides everything but
the time that the machine takes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from layerstore.check import check
from layerstore.commit.committing import Committed, commit
from layerstore.commit.config import Description
from layerstore.errors import ImageUnknown
from layerstore.repair import repair
from layerstore.scrub import scrub
from layerstore.store import Store
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.stores import litter, problems

FILES = 120
NAMES = ("one", "two", "three", "committed")


class Wrong(Exception):
    """What a kill has broken."""


class World:
    """A store, what goes into it, and the commands that change it.

    Args:
        place: an empty directory.
        seed: of every choice.
    """

    def __init__(self, place: Path, seed: int) -> None:
        self.root = place / "store"
        self.chance = random.Random(seed)
        self.upper = place / "upper"
        self.upper.mkdir()
        files = [
            Item(f"f{number}", self.chance.randbytes(self.chance.choice((100, 3000, 60_000))))
            for number in range(3 * FILES)
        ]
        layers = [tar_of(files[start : start + FILES]) for start in range(0, 3 * FILES, FILES)]
        self.sources = {
            "one": layout_of(layers[:1]).archive(place / "one.tar"),
            "two": layout_of(layers[:2], compress="gzip").archive(place / "two.tar"),
            "three": layout_of([layers[0], layers[2]], compress="gzip").archive(
                place / "three.tar"
            ),
        }
        for number in range(FILES // 2):
            (self.upper / f"u{number}").write_bytes(self.chance.randbytes(20_000))
        Store.open(str(self.root), create=True).close()
        self.kills: Counter[str] = Counter()
        self.took: dict[str, float] = {}

    def choose(self) -> tuple[str, Callable[[Store], object]]:
        """A command, and a function that gives it."""
        kind = self.chance.choice(("import", "import", "commit", "rm", "gc", "scrub"))
        if kind == "import":
            name = self.chance.choice(list(self.sources))
            keep = self.chance.random() < 0.5
            return kind, lambda store: store.import_image(self.sources[name], name, keep_blobs=keep)
        if kind == "commit":
            (self.upper / "changed").write_bytes(self.chance.randbytes(30_000))
            return kind, self._commit
        if kind == "rm":
            name = self.chance.choice(NAMES)
            return kind, lambda store: _remove(store, name)
        if kind == "gc":
            return kind, lambda store: store.collect()
        return kind, _scrub_and_repair

    def _commit(self, store: Store) -> None:
        base = "one" if _is_there(store, "one") else None
        what = Committed(os.fsencode(self.upper), None, base, "the upper", userxattr=True)
        commit(store, what, Description(time.time_ns(), "a soak"), "committed")

    def round(self) -> None:
        """One command, killed; everything that must hold afterwards.

        Raises:
            Wrong: something does not.
        """
        kind, command = self.choose()
        killed = self._killed(kind, command)
        self.kills[kind] += killed
        self._must_be_sound(f"after a killed {kind}")
        with Store.open(str(self.root)) as store:
            try:
                command(store)
            except Exception as error:
                raise Wrong(f"a second {kind} fails: {type(error).__name__}: {error}") from error
        self._must_be_sound(f"after a second {kind}")

    def _killed(self, kind: str, command: Callable[[Store], object]) -> bool:
        """Give a command in a process, and kill it at a moment within what such a one took last."""
        moment = self.chance.uniform(0, self.took.get(kind, 0.5))
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with Store.open(str(self.root)) as store:
                    command(store)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        while time.monotonic() - began < moment:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                # Faster than thought: nothing was killed, and the next is tried sooner.
                self.took[kind] = time.monotonic() - began
                if status:
                    raise Wrong(f"{kind} fails by itself: status {status}")
                return False
            time.sleep(0.0002)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        # Slower than thought: look further into it next time.
        self.took[kind] = max(self.took.get(kind, 0.5), moment) * 1.02
        return os.WIFSIGNALED(status)

    def _must_be_sound(self, when: str) -> None:
        with Store.open(str(self.root)) as store:
            found = [problem.what for problem in check(store)]
        if found:
            raise Wrong(f"{when}: {'; '.join(found)}")

    def end(self) -> None:
        """All images whole, and after a collection nothing that nobody needs.

        Raises:
            Wrong: something is lost or left.
        """
        if lost := problems(self.root):
            raise Wrong(f"at the end: {'; '.join(lost)}")
        with Store.open(str(self.root)) as store:
            store.collect()
        if lost := problems(self.root):
            raise Wrong(f"after a collection: {'; '.join(lost)}")
        if left := litter(self.root):
            raise Wrong(f"left after a collection: {'; '.join(left)}")


def _remove(store: Store, name: str) -> None:
    with contextlib.suppress(ImageUnknown):
        store.remove(name)


def _is_there(store: Store, name: str) -> bool:
    return any(f"{name}:latest" in image.tags for image in store.images())


def _scrub_and_repair(store: Store) -> None:
    found = [problem.what for problem in scrub(store, fast=True)]
    if found:
        raise Wrong(f"scrub: {'; '.join(found)}")
    repair(store)


def soak(times: int, seed: int, place: Path) -> Counter[str]:
    """Kill until `times` commands have died.

    Returns:
        how many of each kind.

    Raises:
        Wrong: see `World`.
    """
    world = World(place, seed)
    told = time.monotonic()
    while world.kills.total() < times:
        world.round()
        if time.monotonic() - told > 15:
            told = time.monotonic()
            print(f"{world.kills.total()} of {times} killed", file=sys.stderr, flush=True)
    world.end()
    return world.kills


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/soak kill", description=__doc__)
    parser.add_argument("--times", type=int, default=200, help="how many kills")
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args(arguments)
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    place = Path(tempfile.mkdtemp(prefix="overlayfs-py-kill-"))
    began = time.monotonic()
    try:
        kills = soak(chosen.times, seed, place)
    except Wrong as wrong:
        print(f"{wrong}\nthe store is in {place}")
        return 1
    shutil.rmtree(place)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(kills.items()) if count)
    print(
        f"{kills.total()} killed ({kinds}) in {time.monotonic() - began:.0f} s: fsck found nothing"
        " wrong, every second try succeeded, nothing was lost, nothing was left"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
