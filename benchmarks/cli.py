"""The command line: the only place that prints.

python -m benchmarks run [--quick] [--only ROW,...] [--subject SUBJECT] --json FILE
python -m benchmarks compare OLD NEW
python -m benchmarks report FILE --output PAGE
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.errors import UserError

# Five rounds are the fewest that `compare` can call at 99 percent.
QUICK_ROUNDS, QUICK_LIMIT_MINUTES = 5, 1.75
FULL_ROUNDS, FULL_LIMIT_MINUTES = 7, 90.0
EXTRA = ("jinja2", "matplotlib", "msgspec", "numpy", "rich", "scipy")

RUN_EPILOG = """\
A SUBJECT is [LABEL=]WHAT[,MOUNT OPTION...], where WHAT is plain (a directory, the floor), kernel (its
overlayfs), ours (overlayfs-py), or any program with fuse-overlayfs's command line, by name or path:
  --subject plain --subject kernel,metacopy=on --subject old=/opt/1.9/bin/fuse-overlayfs

A ROW is a row's name, a workload's, or a shell pattern of either; `run --list` names all.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog=program, description="Measures union filesystems side by side."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="run|compare|report")
    run = commands.add_parser(
        "run",
        help="measure",
        description="Measures all subjects in one go, interleaved, and writes every raw sample.",
        epilog=RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    run.add_argument(
        "--quick", action="store_true", help="the rows that matter most, in two minutes"
    )
    run.add_argument(
        "--only", action="append", default=[], metavar="ROW,...", help="these rows only"
    )
    run.add_argument("--subject", action="append", default=[], help="measure this (repeatable)")
    run.add_argument("--on", metavar="BASE,...", default="", help="tmpfs, disk, ext4, xfs, btrfs")
    run.add_argument("--rounds", type=int, help=f"default {FULL_ROUNDS}, quick {QUICK_ROUNDS}")
    run.add_argument(
        "--limit",
        type=float,
        metavar="MINUTES",
        help=f"end by then with what there is (default {FULL_LIMIT_MINUTES:g}, quick {QUICK_LIMIT_MINUTES:g})",
    )
    run.add_argument(
        "--delay",
        action="append",
        default=[],
        metavar="LABEL:lookup=MICROSECONDS",
        help="wait so long in each lookup of that subject: shows that compare finds it",
    )
    run.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where to work (default %(default)s); its file system is the base `disk`",
    )
    run.add_argument("--list", action="store_true", help="name the rows and end")
    compare = commands.add_parser(
        "compare",
        help="name what got slower between two results",
        description="Names what changed by more than noise; status 1 if anything got slower.",
    )
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    compare.add_argument(
        "--threshold", type=float, default=3.0, metavar="PERCENT", help="ignore less (default 3)"
    )
    compare.add_argument(
        "--confidence", type=float, default=99.0, metavar="PERCENT", help="default 99"
    )
    compare.add_argument(
        "--relative-to",
        metavar="LABEL",
        help="divide by this subject first: takes out a change of the machine",
    )
    report = commands.add_parser(
        "report",
        help="show a result as a page",
        description="Writes one self-contained HTML page, or Markdown if PAGE ends in .md.",
    )
    report.add_argument("file", type=Path)
    report.add_argument("--output", type=Path, required=True, metavar="PAGE")
    report.add_argument("--baseline", metavar="LABEL", help="default: the first subject")
    return top


def main(arguments: Sequence[str] | None = None, program: str = "python -m benchmarks") -> int:
    """Runs a command line; returns its exit status.

    0: done; 1: something got slower, or a mistake was named in one line; 130: interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser(program).parse_args(words)
    try:
        _need_extra()
        # What needs the extra is imported when it is known to be there, and to be needed.
        if options.command == "run":
            return _run(options, [*program.split(), *words])
        if options.command == "compare":
            return _compare(options)
        return _report(options)
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


def _need_extra() -> None:
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'overlayfs-py[bench]'")


def _run(options: argparse.Namespace, command: list[str]) -> int:
    from benchmarks import machine, plan, subjects
    from benchmarks.progress import Progress
    from benchmarks.report import words
    from benchmarks.runner import Request, run

    only = [word for text in options.only for word in text.split(",") if word]
    bases = [word for word in options.on.split(",") if word]
    cells = plan.cells(options.quick, only, bases)
    if options.list:
        for cell in cells if options.quick or only else plan.cells(False, ["*"], bases):
            for row in cell.rows():
                print(row.id)
        return 0
    if options.json is None:
        raise UserError("run needs --json FILE, where the result goes")
    specs = [subjects.parse(text) for text in options.subject or _default_subjects(options.quick)]
    specs = subjects.distinct(specs)
    for text in options.delay:
        specs = subjects.with_delay(specs, text)
    rounds = QUICK_ROUNDS if options.quick else FULL_ROUNDS
    limit = QUICK_LIMIT_MINUTES if options.quick else FULL_LIMIT_MINUTES
    rounds = rounds if options.rounds is None else options.rounds
    limit = limit if options.limit is None else options.limit
    if rounds < 1 or limit <= 0:
        raise UserError("--rounds and --limit must be positive")
    _must_be_writable(options.json)
    request = Request(
        cells, specs, rounds, limit * 60, options.quick, options.directory, options.json, command
    )
    guess = plan.estimate_s(cells, specs, rounds)
    bound = words.duration(limit * 60)
    end = f"at most {bound}" if guess < limit * 60 else f"ends after {bound} with what there is"
    with Progress(rounds) as progress:
        progress.note(
            f"{len(cells)} rows, {len(specs)} subjects, {rounds} rounds: about "
            f"{words.duration(guess)}, {end}"
        )
        if (warning := machine.busy()) is not None:
            progress.note(warning)
        document = run(request, progress)
    print(
        f"{len(document.samples)} samples in {words.duration(document.duration_s)}: {options.json}"
    )
    if not document.complete:
        print(f"not complete: {words.ending(document.ended_by)}", file=sys.stderr)
    return 130 if document.ended_by == "interrupted" else 0


def _default_subjects(quick: bool) -> Sequence[str]:
    from benchmarks import subjects

    return subjects.QUICK if quick else subjects.FULL


def _must_be_writable(path: Path) -> None:
    directory = path.absolute().parent
    if path.is_dir() or not os.access(directory, os.W_OK):
        raise UserError(f"--json {path}: cannot write there")


def _compare(options: argparse.Namespace) -> int:
    from benchmarks import compare, results
    from benchmarks.comparison_text import show

    comparison = compare.compare(
        results.load(options.old),
        results.load(options.new),
        threshold=options.threshold / 100,
        confidence=options.confidence / 100,
        relative_to=options.relative_to,
    )
    show(comparison)
    return 1 if comparison.called(compare.Verdict.SLOWER) else 0


def _report(options: argparse.Namespace) -> int:
    from benchmarks import results

    if options.output.suffix == ".md":
        from benchmarks.report.markdown import render
    else:
        from benchmarks.report.page import render
    page = render(results.load(options.file), options.baseline)
    try:
        options.output.write_text(page)
    except OSError as error:
        raise UserError(f"--output {options.output}: {error.strerror}") from None
    return 0
