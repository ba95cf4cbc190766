"""The command line of tools/figures: the only place here that prints.

tools/figures                  everything: at most an hour, on a quiet machine
tools/figures WHAT...          only import, mount, container, disk, export, tree, pull or memory
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import machine, plan, scratch, stores, subjects
from benchmarks.errors import CannotMeasure, UserError
from benchmarks.family import archives, disk, floor, goals, memory, pulls, round_trip
from benchmarks.family.goals import Finding
from benchmarks.mounts import Mounter
from benchmarks.progress import Progress
from benchmarks.runner import Request, run
from benchmarks.subjects import Spec

ROWS = {"import": "family-import", "mount": "store-mount", "container": "family-container"}
CHECKS = ("disk", "export", "tree")
PULL = "pull"
MADE = "memory"
"""Measured on images that are made for it, not on the family."""
WORDS = (*ROWS, *CHECKS, PULL, MADE)
SUBJECTS = (goals.OURS, goals.SKOPEO, goals.KERNEL)
ROUNDS, LIMIT_MINUTES = 7, 40.0


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="tools/figures",
        description="What the layer store reaches on the images of `tools/images --family`,"
        " beside skopeo, umoci and the kernel's overlayfs. As root.",
    )
    top.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(WORDS)}; default: all")
    top.add_argument("--rounds", type=int, default=ROUNDS, help="of timings (default %(default)s)")
    top.add_argument(
        "--limit",
        type=float,
        default=LIMIT_MINUTES,
        metavar="MINUTES",
        help="end the timings by then with what there is (default %(default)g)",
    )
    top.add_argument(
        "--image",
        action="append",
        choices=archives.FAMILY,
        help="disk, export and tree only of this one (repeatable)",
    )
    top.add_argument("--json", type=Path, metavar="FILE", help="keep the samples of the timings")
    top.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where to work, with 8 GB free (default %(default)s)",
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns 0 if every goal was met, 1 if not or for a mistake."""
    options = parser().parse_args(arguments)
    wanted = options.what or WORDS
    try:
        for word in wanted:
            if word not in WORDS:
                raise UserError(f"{word}: expected one of {', '.join(WORDS)}")
        if (warning := machine.busy()) is not None:
            print(warning, file=sys.stderr)
        for left in scratch.sweep(options.directory):
            print(f"cleared {left}, left by a run that was killed", file=sys.stderr)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        findings = []
        for finding in _findings(options, wanted):
            show(finding)
            findings.append(finding)
    except UserError as error:
        print(f"tools/figures: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    missed = sum(finding.met is False for finding in findings)
    print(f"{len(findings)} figures, {missed} short of their goal")
    return 1 if missed or not findings else 0


def show(finding: Finding) -> None:
    """One figure, as it comes."""
    verdict = {None: "", True: "met: ", False: "MISSED: "}[finding.met]
    goal = f"   ({verdict}{finding.goal})" if finding.goal else ""
    print(f"{finding.what}:\n    {finding.measured}{goal}", flush=True)


def _findings(options: argparse.Namespace, wanted: Sequence[str]) -> Iterator[Finding]:
    rows = [ROWS[word] for word in wanted if word in ROWS]
    if rows:
        yield from _timings(options, rows)
    checks = [word for word in CHECKS if word in wanted]
    if checks:
        yield from _checks(options.directory, options.image or list(archives.FAMILY), checks)
    if PULL in wanted:
        yield from _pulls(options.directory)
    if MADE in wanted:
        with scratch.working(options.directory) as place:
            try:
                yield from memory.measure(subjects.locate(subjects.parse(goals.OURS)), place)
            except CannotMeasure as reason:
                raise UserError(str(reason)) from None


def _timings(options: argparse.Namespace, rows: list[str]) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as kept:
        output = options.json or Path(kept, "samples.json")
        request = Request(
            plan.cells(False, rows, []),
            [subjects.parse(text) for text in SUBJECTS],
            options.rounds,
            options.limit * 60,
            False,
            options.directory,
            output,
            ["tools/figures", *options.what],
        )
        with Progress(options.rounds) as progress:
            results = run(request, progress)
    if not results.complete:
        print(f"not complete: the timings ended by {results.ended_by}", file=sys.stderr)
    if results.ended_by == "interrupted":
        raise KeyboardInterrupt
    yield from goals.timings(results)


def _checks(directory: Path, tags: list[str], checks: list[str]) -> Iterator[Finding]:
    with scratch.working(directory) as place:
        layout = place / "layout"
        try:
            archives.lay_out_family(tags, layout)
            ours, skopeo = (subjects.locate(subjects.parse(text)) for text in SUBJECTS[:2])
            store = stores.kept(ours, layout, tags, place / "plain")
            if "disk" in checks:
                yield from _disk(layout, tags, store, skopeo, place)
            if "export" in checks:
                keeping = stores.kept(ours, layout, tags, place / "keeping", keep_blobs=True)
                (place / "exported").mkdir()
                yield from round_trip.exports(layout, tags, keeping, place / "exported")
            if "tree" in checks:
                mounter = Mounter(place)
                try:
                    yield from round_trip.mounted(layout, tags, store, place, mounter)
                finally:
                    mounter.end_daemons()
        except CannotMeasure as reason:
            raise UserError(str(reason)) from None


def _pulls(directory: Path) -> Iterator[Finding]:
    with scratch.working(directory) as place:
        try:
            ours = subjects.locate(subjects.parse(goals.OURS))
            names = sorted({name for pair in pulls.PAIRS for name in pair[:2]})
            archives.lay_out_family(names, place / "layout")
            yield from pulls.pulls(ours, place / "layout", place)
        except CannotMeasure as reason:
            raise UserError(str(reason)) from None


def _disk(
    layout: Path, tags: list[str], store: stores.Store, skopeo: Spec, place: Path
) -> Iterator[Finding]:
    least = floor.measure(layout, tags)
    used = disk.usage(store.directory)
    theirs = stores.kept(skopeo, layout, tags, place / "peer")
    for line in goals.disk_lines(least, used):
        print(f"  {line}")
    yield from goals.bytes_on_disk(least, used, theirs.disk_bytes())
