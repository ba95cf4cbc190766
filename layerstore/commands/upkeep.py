"""The store's health and size: `gc`, `fsck`, `scrub`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from layerstore.commands.output import complain, print_json, progress_bars, size
from layerstore.commands.parsing import Commands, open_store
from layerstore.errors import StoreError
from layerstore.store import Store

if TYPE_CHECKING:
    from layerstore.check import Problem


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    commands.add("gc", _gc, "delete what nothing refers to")
    one = commands.add("fsck", _fsck, "check that the store holds what its images need")
    one.add_argument("--content", action="store_true", help="also compare content with its digest")
    _add_repair(one)
    one = commands.add("scrub", _scrub, "read all content and compare it with its digest")
    one.add_argument(
        "--fast", action="store_true", help="by the checksums (XXH3) that imports have noted"
    )
    _add_repair(one)


def _add_repair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repair", action="store_true", help="put back what the store itself can make anew"
    )
    parser.add_argument(
        "--repair-from",
        metavar="SOURCE",
        help="also what an archive, a directory or a registry has, spelled as for import",
    )


def _gc(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        done = store.collect()
    if done is None:
        raise StoreError("an import is running: try again when it is done")
    if arguments.json:
        print_json(done._asdict())
    else:
        print(f"freed {size(done.bytes)} in {done.objects} objects and {done.indexes} indexes")
    return 0


def _fsck(arguments: argparse.Namespace) -> int:
    from layerstore.check import check

    with open_store(arguments) as store:
        if arguments.repair or arguments.repair_from is not None:
            _repair(store, arguments)
        problems = list(check(store, content=arguments.content))
    return _report(arguments, problems)


def _scrub(arguments: argparse.Namespace) -> int:
    from layerstore.check import check
    from layerstore.scrub import scrub

    with open_store(arguments) as store:
        with progress_bars() as progress:
            problems = list(scrub(store, fast=arguments.fast, progress=progress))
        if problems and (arguments.repair or arguments.repair_from is not None):
            if not arguments.json:
                print(*map(_line, problems), sep="\n")
            _repair(store, arguments)
            problems = list(check(store))
    return _report(arguments, problems)


def _repair(store: Store, arguments: argparse.Namespace) -> None:
    from layerstore.repair import repair

    with progress_bars() as progress:
        done = repair(store, arguments.repair_from, progress)
    if not arguments.json:
        counts = f"{done.objects} objects, {done.indexes} indexes, {done.splits} splits"
        print(f"put back {counts}, {done.blobs} blobs")
    for line in done.left:
        complain(line)


def _report(arguments: argparse.Namespace, problems: list[Problem]) -> int:
    if arguments.json:
        print_json([problem._asdict() for problem in problems])
    else:
        for problem in problems:
            print(_line(problem))
        print(f"{len(problems)} problems" if problems else "nothing wrong")
    return 1 if problems else 0


def _line(problem: Problem) -> str:
    return f"{problem.what} (images: {', '.join(problem.images) or 'none'})"
