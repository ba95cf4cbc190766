"""`tools/soak`: any number of random operations against model and subjects; the replay of a seed.

Each run takes a seed: it decides the layers, the umask, the operations. A failure prints the seed
and the shortest sequence found, as a test in `test_regressions.py` can hold it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import re
import sys
import tempfile
import time

from tests.model.compare import Disagreement
from tests.model.crash import crash_run
from tests.model.mounted import MS_PRIVATE, MS_REC, detach, mount
from tests.model.runs import (
    ALL,
    AS_THE_KERNEL,
    BY_TURNS,
    OVER_IMAGES,
    SERVED,
    explain,
    makers,
    one_run,
    plan,
)
from tests.model.scratch import scratch_directory

CLONE_NEWNS = 0x20000


def private_mounts() -> None:
    """Leave the mount namespace, so that a run that is killed leaves nothing mounted.

    What others have mounted below the temporary directory is let go of here: it would live on as
    long as this process, and their unmounting would not end it.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount(b"none", b"/", b"", MS_REC | MS_PRIVATE, b"")
    temporary = os.fsencode(os.path.realpath(tempfile.gettempdir())) + b"/"
    with open("/proc/self/mountinfo", "rb") as mounts:
        places = [re.sub(rb"\\([0-7]{3})", _character, line.split()[4]) for line in mounts]
    for place in reversed(places):
        if place.startswith(temporary):
            detach(place)


def _character(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 8)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/soak", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=None, help="the first run's; later ones count up"
    )
    parser.add_argument("--operations", type=int, default=10_000, help="how many in all")
    parser.add_argument("--length", type=int, default=200, help="how many in one run")
    parser.add_argument(
        "--subject",
        action="append",
        help="verbs (default; without a mount), mounted, kernel, imaged (over an image of the lower "
        "layers), alternating (the kernel and ours by turns on the same directories), "
        "fuse-overlayfs; may be repeated",
    )
    parser.add_argument("--crash", action="store_true", help="end operations at random changes")
    parser.add_argument("--layers-on", choices=["tmpfs", "disk"], default="tmpfs")
    parser.add_argument(
        "--keep-going", action="store_true", help="do not stop at the first failure"
    )
    chosen = parser.parse_args(arguments)
    subjects = chosen.subject or ["verbs"]
    private_mounts()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 32)
    total = failures = crashes = 0
    began = time.monotonic()
    rules = ALL
    if "alternating" in subjects:
        rules = BY_TURNS
    elif "imaged" in subjects:
        rules = OVER_IMAGES
    elif "mounted" in subjects:
        rules = SERVED
    elif chosen.crash or "kernel" in subjects:
        rules = AS_THE_KERNEL
    while total < chosen.operations:
        with scratch_directory(chosen.layers_on) as scratch:
            make = makers(subjects, scratch)
            this = plan(seed, rules)
            if chosen.crash:
                directory = os.fsencode(tempfile.mkdtemp(dir=scratch))
                try:
                    crashes += crash_run(this, directory, chosen.length, kernel=seed % 4 == 0)
                except Disagreement as disagreement:
                    failures += 1
                    print(f"seed {seed}: {disagreement}", flush=True)
                    if not chosen.keep_going:
                        break
                total += chosen.length
                seed += 1
                continue
            done, text = one_run(this, make, chosen.length)
            total += max(len(done), 1)
            if text:
                failures += 1
                print(f"seed {seed}: {text}\nshortening {len(done)} operations ...", flush=True)
                print(explain(this, make, done))
                print(f"again: tools/soak --seed {seed} --operations 1 --length {chosen.length}")
                if not chosen.keep_going:
                    break
        seed += 1
    pace = total / (time.monotonic() - began)
    print(
        f"{total} operations, next seed {seed}, {pace:.0f} a second, {failures} failures, {crashes} crashes"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
