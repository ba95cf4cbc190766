"""Where one row's time goes in the daemon, as a flame graph of Python and native frames.

    tools/profile [--subject SUBJECT] [--seconds N] ROW --output PICTURE.svg

The row is taken again and again on one mount while py-spy samples the serving process from outside,
native frames included; threads that wait are left out unless `--idle` is given. Only a daemon
written in Python can be looked into this way.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import flame, plan, probe, scratch, subjects
from benchmarks.arena import Arena
from benchmarks.errors import CannotMeasure, UserError
from benchmarks.forge import Forge
from benchmarks.mounts import Mounted, Mounter
from benchmarks.plan import Cell
from benchmarks.subjects import Spec

RATE_HZ = 250  # native stacks take about a millisecond each; the daemon stands still meanwhile


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="tools/profile", description=__doc__.split("\n")[0])
    parser.add_argument("row", help="as `python -m benchmarks run --list` names them")
    parser.add_argument("--output", type=Path, required=True, metavar="PICTURE.svg")
    parser.add_argument("--subject", default="ours", help=subjects.SPELLING)
    parser.add_argument("--seconds", type=float, default=10.0, help="default %(default)s")
    parser.add_argument("--idle", action="store_true", help="count threads that wait as well")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args(arguments)
    try:
        _profile(options)
    except (UserError, CannotMeasure) as error:
        print(f"tools/profile: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _profile(options: argparse.Namespace) -> None:
    cells = plan.cells(False, [options.row], [])
    if len(cells) != 1:
        raise UserError(f"{options.row} is {len(cells)} rows: name one of them with its base")
    cell = cells[0]
    spec = subjects.locate(subjects.parse(options.subject))
    if spec.kind != subjects.PROGRAM or cell.workload.mounts_itself:
        raise UserError("only rows on one mount of a program have a daemon to look into")
    binary = probe.build()
    place = scratch.Scratch(options.directory)
    mounter = Mounter(place.path)
    try:
        _sample(options, cell, spec, place, mounter, Forge(binary, place.path / "names"))
    finally:
        mounter.end_daemons()
        for line in place.close():
            print(f"left behind: {line}", file=sys.stderr)


def _sample(
    options: argparse.Namespace,
    cell: Cell,
    spec: Spec,
    place: scratch.Scratch,
    mounter: Mounter,
    forge: Forge,
) -> None:
    """Takes samples on fresh mounts, each watched by a profiler, until the time is up."""
    parameters, workload = cell.variant.parameters, cell.workload
    base = place.base(cell.base)[1]
    layers = forge.layers(
        base, cell.key, cell.variant.space, lambda site: workload.lay(site, parameters)
    )
    stacks = place.path / "stacks"
    stacks.mkdir()
    end = time.monotonic() + options.seconds
    number = 0
    while number == 0 or time.monotonic() < end:
        with mounter.mounted(spec, layers, base, read_only=cell.variant.read_only) as live:
            watcher = _watch(live, stacks / str(number), options.idle)
            try:
                arena = Arena(spec, layers, base, forge, mounter, live)
                repeat = not workload.changes
                while True:
                    workload.measure(arena, parameters)
                    if not repeat or time.monotonic() > end:
                        break
            finally:
                _end(watcher, stacks / str(number))
        number += 1
    _draw(
        [stacks / str(n) for n in range(number)],
        options.output,
        f"{cell.key}@{cell.base} of {spec.label}",
    )


def _watch(live: Mounted, output: Path, idle: bool) -> "subprocess.Popen[bytes]":
    """Starts py-spy on the daemon; it writes folded stacks when it is interrupted."""
    if not live.pids:
        raise CannotMeasure("the serving process was not found")
    program = Path(sys.executable).with_name("py-spy")
    found = str(program) if program.exists() else shutil.which("py-spy")
    if found is None:
        raise UserError("py-spy is not installed: pip install 'overlayfs-py[bench]'")
    argv = [found, "record", "--pid", str(live.pids[0]), "--native", "--threads"]
    argv += ["--rate", str(RATE_HZ), "--duration", "unlimited", "--format", "raw"]
    argv += ["--output", str(output), *(["--idle"] if idle else [])]
    with open(output.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    time.sleep(0.3)  # it reads the daemon's symbols first
    return process


def _end(watcher: "subprocess.Popen[bytes]", output: Path) -> None:
    """Ends py-spy. Raises CannotMeasure with its own words if it wrote nothing."""
    if watcher.poll() is None:
        os.kill(watcher.pid, signal.SIGINT)
    try:
        watcher.wait(30)
    except subprocess.TimeoutExpired:
        watcher.kill()
        watcher.wait()
    if not output.exists():
        lines = output.with_suffix(".log").read_text(errors="replace").split("\n")
        said = [line for line in lines if line.startswith(("Error", "Reason"))]
        reason = said[0] if said else "it saw no stacks; is the daemon a Python program?"
        raise CannotMeasure(f"py-spy: {reason}")


def _draw(folded: list[Path], output: Path, title: str) -> None:
    stacks: dict[tuple[str, ...], int] = {}
    for path in folded:
        for line in path.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            frames = tuple(stack.split(";"))
            stacks[frames] = stacks.get(frames, 0) + int(count)
    if not stacks:
        raise CannotMeasure("no samples: the daemon did nothing, or it ended too soon")
    output.write_text(flame.draw(stacks, title))
    print(f"{sum(stacks.values())} samples at {RATE_HZ} a second: {output}")


if __name__ == "__main__":
    sys.exit(main())
