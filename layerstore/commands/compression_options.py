"""The options of commands that compress layers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from layerstore.errors import StoreError

if TYPE_CHECKING:
    from layerstore.export.layers import Compression


def add(parser: argparse.ArgumentParser, what: str) -> None:
    """Tell a command's parser the options.

    Args:
        what: what is compressed, and how if nobody asks, for the help.
    """
    parser.add_argument("--compress", choices=("gzip", "zstd", "none"), help=what)
    parser.add_argument(
        "--compress-level", metavar="N", type=int, help="1 to 9 for gzip, 1 to 22 for zstd"
    )


def chosen(arguments: argparse.Namespace) -> Compression | None:
    """What they ask for; None: nothing.

    Raises:
        StoreError: a level of nothing.
    """
    from layerstore.export.layers import Compression

    method, level = arguments.compress, arguments.compress_level
    if method is not None:
        return Compression(method, level)
    if level is not None:
        raise StoreError("--compress-level needs --compress gzip or --compress zstd")
    return None
