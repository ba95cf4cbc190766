"""The options of commands that bring an image into the store."""

from __future__ import annotations

import argparse
from typing import Any

from layerstore.oci.limits import DEFAULT_LIMITS, Limits


def add(parser: argparse.ArgumentParser) -> None:
    """Tell a command's parser the options."""
    parser.add_argument(
        "--absolute-names",
        "-P",
        action="store_true",
        help="take absolute names in a layer as below the root of the image",
    )
    parser.add_argument(
        "--keep-blobs",
        action="store_true",
        help="keep compressed layers also as they are, so that an export has the same manifest",
    )
    limits = parser.add_argument_group("limits for each layer", "0: none")
    limits.add_argument(
        "--max-layer-size",
        metavar="SIZE",
        type=_byte_count,
        default=DEFAULT_LIMITS.layer_bytes,
        help="bytes when unpacked, such as 500M or 2T (default: 64G)",
    )
    limits.add_argument(
        "--max-entries",
        metavar="N",
        type=_count,
        default=DEFAULT_LIMITS.entries,
        help="files, directories and so on (default: %(default)s)",
    )
    limits.add_argument(
        "--max-ratio",
        metavar="N",
        type=_count,
        default=DEFAULT_LIMITS.ratio,
        help="unpacked to compressed bytes, above 1G (default: %(default)s)",
    )


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as keyword arguments of `Store.import_image`."""
    limits = Limits(arguments.max_layer_size, arguments.max_entries, arguments.max_ratio)
    return {
        "absolute_names": arguments.absolute_names,
        "keep_blobs": arguments.keep_blobs,
        "limits": limits,
    }


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _byte_count(text: str) -> int:
    """A number of bytes, perhaps with K, M, G or T for powers of 1024."""
    power = "KMGT".find(text[-1:].upper()) + 1 if text else 0
    return _count(text[:-1] if power else text) << (10 * power)
