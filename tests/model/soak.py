"""`tools/soak`: any number of random operations against model and subjects, and the replay of a
seed.

Each run takes a seed: it decides the layers, the umask, the operations. A failure prints the seed
and the shortest sequence found, as a test in `test_regressions.py` can hold it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.model import acl, compare, generate, layers
from tests.model.compare import Comparison, Disagreement, Subject
from tests.model.generate import Features, Operation
from tests.model.layers import Layer
from tests.model.mounted import MS_PRIVATE, MS_REC, FuseOverlayfs, Kernel, mount, unmount

CLONE_NEWNS = 0x20000
LENGTH = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """What the seed of a run decides."""

    stack: list[Layer]
    umask: int
    check_every: int
    features: Features
    chance: random.Random


def plan(seed: int, features: Features, whiteouts: tuple[str, ...]) -> Plan:
    chance = random.Random(seed)
    stack = layers.random_stack(chance, chance.randint(1, 4), features.names, whiteouts)
    layers.drop_stray_whiteouts(stack)
    umask = chance.choice([0, 0, 0o022, 0o077])
    if umask:
        features = replace(features, default_acls=False)
        strip_default_acls(stack)
    return Plan(stack, umask, chance.choice([1, 1, 5, 20]), features, chance)


def strip_default_acls(stack: list[Layer]) -> None:
    for layer in stack:
        for entry in layer.values():
            entry.xattrs.pop(acl.DEFAULT, None)


Make = Callable[[list[Layer], int], Subject]


def subject_makers(names: list[str], scratch: str) -> list[Make]:
    """For each subject's name a function that makes it in a directory of its own below
    `scratch`."""

    def maker(kind: Callable[[bytes, list[Layer]], Subject]) -> Make:
        def make(stack: list[Layer], umask: int) -> Subject:
            return kind(os.fsencode(tempfile.mkdtemp(dir=scratch)), stack)

        return make

    kinds: dict[str, Callable[[bytes, list[Layer]], Subject]] = {
        "kernel": Kernel,
        "fuse-overlayfs": FuseOverlayfs,
    }
    return [maker(kinds[name]) for name in names]


def one_run(plan: Plan, make: list[Make], length: int) -> tuple[int, list[Operation], str | None]:
    """Operations done, those operations, and what disagreed."""
    comparison = Comparison(plan.stack, make, plan.features, plan.umask)
    try:
        comparison.check()
        for at in range(length):
            comparison.run(comparison.draw(plan.chance))
            if at % plan.check_every == 0:
                comparison.check()
        comparison.check()
    except Disagreement as disagreement:
        return len(comparison.done), comparison.done, str(disagreement)
    finally:
        comparison.end()
    return len(comparison.done), comparison.done, None


def report(seed: int, plan: Plan, make: list[Make], done: list[Operation], text: str) -> None:
    print(f"seed {seed}: {text}\nshortening {len(done)} operations ...", flush=True)

    def again() -> Comparison:
        return Comparison(plan.stack, make, plan.features, plan.umask)

    short = compare.shorten(again, done)
    print(f"umask {plan.umask:#o}, layers, top first:")
    for layer in plan.stack:
        print("  {")
        for path, entry in layer.items():
            print(f"    {path!r}: {entry},"[:200])
        print("  },")
    print("operations:")
    for operation in short:
        print(f"    {operation}")
    print(compare.replay(again, short) or "(does not fail when every step is checked)", flush=True)


@contextlib.contextmanager
def scratch_directory(kind: str) -> Iterator[str]:
    """An empty directory for layers; `kind` "tmpfs" mounts one there, "plain" takes the disk's
    filesystem."""
    path = tempfile.mkdtemp(prefix="overlayfs-py-model-")
    if kind == "tmpfs":
        mount(b"scratch", os.fsencode(path), b"tmpfs", 0, b"mode=755")
    try:
        yield path
    finally:
        if kind == "tmpfs":
            unmount(os.fsencode(path))
        shutil.rmtree(path)


def private_mounts() -> None:
    """Leave the mount namespace, so that a run that is killed leaves nothing mounted."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount(b"none", b"/", b"", MS_REC | MS_PRIVATE, b"")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/soak", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=None, help="the first run's; later ones count up"
    )
    parser.add_argument("--operations", type=int, default=10_000, help="how many in all")
    parser.add_argument("--length", type=int, default=LENGTH, help="how many in one run")
    parser.add_argument("--subject", action="append", help="kernel, verbs, mounted, fuse-overlayfs")
    parser.add_argument("--layers-on", choices=["tmpfs", "plain"], default="tmpfs")
    parser.add_argument(
        "--keep-going", action="store_true", help="do not stop at the first failure"
    )
    chosen = parser.parse_args(arguments)
    subjects = chosen.subject or ["kernel"]
    private_mounts()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 32)
    total = failures = 0
    began = time.monotonic()
    features = Features()
    whiteouts: tuple[str, ...] = layers.WHITEOUT_FORMS
    if "kernel" in subjects:
        features = Features(zero_devices=False, rename_whiteout=False, names=generate.SHORT_NAMES)
        whiteouts = ("device",)
    while total < chosen.operations:
        with scratch_directory(chosen.layers_on) as scratch:
            make = subject_makers(subjects, scratch)
            this = plan(seed, features, whiteouts)
            count, done, text = one_run(this, make, chosen.length)
            total += max(count, 1)
            if text:
                failures += 1
                report(seed, this, make, done, text)
                print(f"again: tools/soak --seed {seed} --operations 1 --length {chosen.length}")
                if not chosen.keep_going:
                    break
        seed += 1
    pace = total / (time.monotonic() - began)
    print(f"{total} operations, next seed {seed}, {pace:.0f} a second, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
