"""From directories to images and back: `commit`, `checkout`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import time

from layerstore.commands.output import print_json, progress_bars, size, summary
from layerstore.commands.parsing import Commands, open_store
from layerstore.errors import StoreError, show

log = logging.getLogger(__name__)

_MODES = """
modes:
  auto      shares blocks with the store (reflinks) where the filesystem can, else copies
  reflink   shares blocks, or fails
  copy      copies
  hardlink  links the store's own files where nobody may execute them and they have no xattrs; those are
            read-only, of the store's owner, and have the store's times. Writing to one damages the store.
"""


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
    one = commands.add(
        "checkout",
        _checkout,
        "write the tree of an image into a directory",
        epilog=_MODES,
    )
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("directory", metavar="DIR", help="new, or empty")
    one.add_argument(
        "--mode",
        choices=("auto", "reflink", "hardlink", "copy"),
        default="auto",
        help="how files get their content; default: auto",
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


def _checkout(arguments: argparse.Namespace) -> int:
    from layerstore.checkout import checkout

    with open_store(arguments) as store, progress_bars() as progress:
        image = store.resolve(arguments.image)
        written = checkout(store, image, arguments.directory, arguments.mode, progress)
    lost = [(written.devices, "devices"), (written.xattrs, "xattrs")]
    left_out = " and ".join(f"{count} {what}" for count, what in lost if count)
    if left_out:
        log.warning("left out, since only root can make them: %s", left_out)
    if arguments.json:
        print_json(dataclasses.asdict(written))
    else:
        shared = f", {written.linked} linked" if written.linked else ""
        shared += f", {written.cloned} sharing blocks" if written.cloned else ""
        print(f"{written.entries} entries, {size(written.bytes)} in {written.files} files{shared}")
    return 0
