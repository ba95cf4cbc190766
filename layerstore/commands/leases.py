"""Keeping images for somebody: `lease add`, `lease rm`, `lease ls`."""

from __future__ import annotations

import argparse
import datetime
import os
import re
from typing import Any

from layerstore.commands.output import complain, print_json, print_table
from layerstore.commands.parsing import Commands, open_store
from layerstore.errors import StoreError, show
from layerstore.leases import Lease
from layerstore.refs import short_id

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw]?)")


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    leases = commands.group("lease", "keep images that others may not remove")
    one = leases.add("add", _add, "keep an image")
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("--name", metavar="LEASE", help="of the lease (default: one is made up)")
    one.add_argument("--owner", metavar="TEXT", default="", help="whose it is")
    one.add_argument(
        "--for",
        dest="seconds",
        metavar="TIME",
        type=_seconds,
        help="for how long: 90, 30m, 12h, 7d, 2w (default: until it is removed)",
    )
    one = leases.add("rm", _rm, "give leases up")
    one.add_argument("names", metavar="LEASE", nargs="+")
    one.add_argument(
        "--force", "-f", action="store_true", help="also one of a mount that may still be there"
    )
    leases.add("ls", _ls, "list the leases, those of the kernel's mounts too")


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 90, 30m, 12h, 7d or 2w")
    return float(match[1]) * _UNITS[match[2]]


def _add(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        image = store.resolve(arguments.image)
        lease = store.leases.add(
            image.id, name=arguments.name, owner=arguments.owner, seconds=arguments.seconds
        )
    if arguments.json:
        print_json(_details(lease))
    else:
        print(lease.name)
    return 0


def _rm(arguments: argparse.Namespace) -> int:
    status = 0
    with open_store(arguments) as store:
        for name in arguments.names:
            try:
                store.leases.remove(name, force=arguments.force)
            except StoreError as error:
                status = complain(str(error))
    return status


def _ls(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        leases = store.leases.all()
    if arguments.json:
        print_json([_details(lease) for lease in leases])
        return 0
    rows = [
        (lease.name, short_id(lease.image_id), _until(lease), _owner(lease)) for lease in leases
    ]
    print_table(("LEASE", "IMAGE", "UNTIL", "OWNER"), rows)
    return 0


def _details(lease: Lease) -> dict[str, Any]:
    return {
        "name": lease.name,
        "image": lease.image_id,
        "owner": lease.owner,
        "made": lease.made_ns / 1e9,
        "expires": None if lease.expires_ns is None else lease.expires_ns / 1e9,
        "mountpoint": None if lease.mountpoint is None else os.fsdecode(lease.mountpoint),
        "upper": lease.upper,
    }


def _owner(lease: Lease) -> str:
    where = "" if lease.mountpoint is None else f" on {show(lease.mountpoint)}"
    return show(lease.owner) + where


def _until(lease: Lease) -> str:
    if lease.mountpoint is not None:
        return "unmounted"
    if lease.expires_ns is None:
        return "removed"
    ends = datetime.datetime.fromtimestamp(lease.expires_ns / 1e9).astimezone()
    return ends.strftime("%Y-%m-%d %H:%M:%S")
