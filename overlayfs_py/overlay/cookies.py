"""Where names are in a listing: offsets that are made from names alone.

Whoever reads a directory in several steps says after which offset to go on. A number of the row would mean another row
once names have come or gone, unless somebody keeps the old listing until the reader has ended, which nobody says where
the kernel opens no directories. A hash of the name means the same in every listing, so each can be made when it is
asked for. ext4 does likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from overlayfs_py.layers.tree import Row

COOKIE_MIN = 3
"""1 is the offset after `.`, 2 after `..`."""


def cookie(name: bytes) -> int:
    """A number of 62 bits, since a negative offset is none."""
    return max(int.from_bytes(blake2b(name, digest_size=8).digest()) >> 2, COOKIE_MIN)


def in_order(
    rows: list[tuple[Row, int]], cookie_of: Callable[[bytes], int]
) -> tuple[list[tuple[Row, int]], list[int]]:
    """The rows by their cookies, and those: no two alike, whatever the names are."""
    order = sorted((cookie_of(row.name), row.name, number) for number, (row, _) in enumerate(rows))
    cookies: list[int] = []
    last = 0
    for found, _, _ in order:
        last = max(found, last + 1)
        cookies.append(last)
    return [rows[number] for _, _, number in order], cookies
