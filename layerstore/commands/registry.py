"""Images from and to registries: `pull`, `push`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from layerstore.commands import compression_options, import_options
from layerstore.commands.output import print_json, print_pushed, progress_bars, size, summary
from layerstore.commands.parsing import Commands, open_store

if TYPE_CHECKING:
    from layerstore.registry.access import Access

_REFERENCES = """
references, as skopeo and podman spell them, with or without docker:// before:
  [HOST[:PORT]/]REPOSITORY[:TAG][@sha256:DIGEST]
Without HOST it is docker.io, and there REPOSITORY alone is library/REPOSITORY.
"""


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    one = commands.add(
        "pull",
        _pull,
        "bring an image from a registry into the store",
        epilog=_REFERENCES,
    )
    one.add_argument("reference", metavar="REFERENCE")
    one.add_argument("--tag", "-t", metavar="NAME[:TAG]", help="the name it gets")
    one.add_argument(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="which image of an index (default: this)"
    )
    one.add_argument(
        "--mirror",
        metavar="HOST[:PORT][/PATH]",
        action="append",
        default=[],
        help="look there first; before those of registries.conf",
    )
    one.add_argument(
        "--no-partial",
        dest="partial",
        action="store_false",
        help="download layers whole, also where the store has most of their files",
    )
    import_options.add(one)
    _add_access(one)
    one = commands.add(
        "push",
        _push,
        "copy an image into a registry",
        epilog=_REFERENCES,
    )
    one.add_argument("image", metavar="IMAGE")
    one.add_argument("reference", metavar="REFERENCE")
    compression_options.add(
        one,
        "how layers are compressed (default: as they came where that can be, else as they were)",
    )
    _add_access(one)


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--creds", metavar="USER[:PASSWORD]", help="for the registry")
    parser.add_argument(
        "--authfile",
        metavar="FILE",
        help="with credentials (default: $REGISTRY_AUTH_FILE, else podman's and docker's files)",
    )
    parser.add_argument(
        "--cert-dir", metavar="DIR", help="*.crt to trust, *.cert and *.key to show"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="do without TLS, for registries on this machine"
    )
    parser.add_argument(
        "--retry",
        metavar="N",
        type=_count,
        default=4,
        help="try again so often when something fails that may pass (default: 4)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help="how long a registry may send nothing (default: 60)",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=_jobs,
        default=6,
        help="how many layers, or ranges of them, at a time (default: 6)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 4:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of times")
    return int(text)


def _jobs(text: str) -> int:
    number = _count(text)
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 64")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _access(arguments: argparse.Namespace) -> Access:
    from layerstore.registry.access import Access
    from layerstore.registry.credentials import parse_credentials
    from layerstore.registry.patience import Patience

    return Access(
        credentials=parse_credentials(arguments.creds) if arguments.creds is not None else None,
        authfile=arguments.authfile,
        cert_dir=arguments.cert_dir,
        insecure=arguments.insecure,
        mirrors=getattr(arguments, "mirror", []),
        patience=Patience(arguments.timeout, arguments.retry + 1),
        jobs=arguments.jobs,
    )


def _pull(arguments: argparse.Namespace) -> int:
    from layerstore.registry.images import pull
    from layerstore.registry.pull import Traffic

    access, traffic = _access(arguments), Traffic()
    with open_store(arguments, create=True) as store, progress_bars() as progress:
        image = pull(
            store,
            arguments.reference,
            arguments.tag,
            progress,
            platform=arguments.platform,
            access=access,
            partial=arguments.partial,
            traffic=traffic,
            **import_options.chosen(arguments),
        )
    if arguments.json:
        print_json({**summary(image), "fetched": traffic.fetched, "spared": traffic.spared})
        return 0
    print(image.id, *image.tags)
    there = f"; {size(traffic.spared)} were there" if traffic.spared else ""
    print(f"fetched {size(traffic.fetched)} of layers{there}", file=sys.stderr)
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from layerstore.registry.images import push

    access, compression = _access(arguments), compression_options.chosen(arguments)
    with open_store(arguments) as store, progress_bars() as progress:
        pushed = push(
            store,
            arguments.image,
            arguments.reference,
            progress,
            compression=compression,
            access=access,
        )
    return print_pushed(pushed, arguments.json)
