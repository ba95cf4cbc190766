"""The store's health and size: `gc`, `fsck`."""

from __future__ import annotations

import argparse

from layerstore.commands.output import print_json, size
from layerstore.commands.parsing import Commands, open_store
from layerstore.errors import StoreError


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    commands.add("gc", _gc, "delete what nothing refers to")
    one = commands.add("fsck", _fsck, "check that the store holds what its images need")
    one.add_argument("--content", action="store_true", help="also compare content with its digest")


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
        problems = list(check(store, content=arguments.content))
    if arguments.json:
        print_json([problem._asdict() for problem in problems])
    else:
        for problem in problems:
            print(f"{problem.what} (images: {', '.join(problem.images) or 'none'})")
        print(f"{len(problems)} problems" if problems else "nothing wrong")
    return 1 if problems else 0
