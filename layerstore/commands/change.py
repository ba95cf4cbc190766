"""New images from old ones: `commit`."""

from __future__ import annotations

import argparse
import os
import time

from layerstore.commands.output import print_json, progress_bars, summary
from layerstore.commands.parsing import Commands, open_store
from layerstore.errors import StoreError, show


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    one = commands.add(
        "commit",
        _commit,
        "make an image of an upper directory and the image it was made on",
        epilog="A mounted upper is committed with overlayfs-py commit.",
    )
    one.add_argument("directory", metavar="DIR", nargs="?", help="an upper directory")
    one.add_argument("--upper", metavar="NAME", help="a named upper, instead of a directory")
    one.add_argument("--base", metavar="IMAGE", help="what the directory was made on")
    one.add_argument(
        "--work",
        metavar="DIR",
        help="its work directory: keeps hard links of the base of which not all names were used",
    )
    one.add_argument("--tag", "-t", metavar="NAME[:TAG]", help="the name of the image")
    one.add_argument("--message", "-m", default="", help="a comment in the history")
    one.add_argument("--author", "-a", default="", help="who made it")
    one.add_argument(
        "--change",
        "-c",
        metavar="INSTRUCTION",
        action="append",
        default=[],
        help="change the config: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME,"
        " WORKDIR, as in a Dockerfile; may be given often",
    )


def _commit(arguments: argparse.Namespace) -> int:
    from layerstore.commit.committing import Committed, commit, named
    from layerstore.commit.config import Description, parse_change

    description = Description(
        time.time_ns(),
        "layerstore commit",
        arguments.author,
        arguments.message,
        [parse_change(text) for text in arguments.change],
    )
    if (arguments.directory is None) == (arguments.upper is None):
        raise StoreError("commit: name either a directory or, with --upper, a named upper")
    if arguments.upper is not None and (arguments.base, arguments.work) != (None, None):
        raise StoreError("commit: a named upper knows its base and its work directory")
    with (
        open_store(arguments, create=arguments.upper is None and arguments.base is None) as store,
        progress_bars() as progress,
    ):
        if arguments.upper is not None:
            what = named(store, arguments.upper)
        else:
            upper = os.path.abspath(os.fsencode(arguments.directory))
            work = os.path.abspath(os.fsencode(arguments.work)) if arguments.work else None
            what = Committed(upper, work, arguments.base, show(upper))
        image = commit(store, what, description, arguments.tag, progress)
    if arguments.json:
        print_json(summary(image))
    else:
        print(image.id, *image.tags)
    return 0
