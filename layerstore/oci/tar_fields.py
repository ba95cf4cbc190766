"""The fields of tar headers and PAX records: bytes to values. Pure functions."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse

_OCTAL = re.compile(rb"[0-7]+")


class FieldInvalid(ValueError):
    """A field that cannot be read; str() says which and why."""


def sum_is_right(header: bytes) -> bool:
    """Whether a header has the checksum it claims. Old archivers added signed bytes."""
    digits = header[148:156].split(b"\0", 1)[0].strip(b" ")
    if not _OCTAL.fullmatch(digits):
        return False
    rest = header[:148] + header[156:]
    total = sum(rest) + 8 * 0x20
    claimed = int(digits, 8)
    return claimed == total or claimed == total - 256 * sum(byte > 127 for byte in rest)


def number(field: bytes, what: str) -> int:
    """A number of a header: octal digits, or GNU's base 256.

    Raises:
        FieldInvalid: it is neither.
    """
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if not _OCTAL.fullmatch(digits):
        raise FieldInvalid(f"{what} is {digits[:20]!r}, not an octal number")
    return int(digits, 8)


def decimal(value: bytes, what: str) -> int:
    """A number of a PAX record.

    Raises:
        FieldInvalid: it is none.
    """
    if not value.isdigit() or len(value) > 20:
        raise FieldInvalid(f"the PAX record {what} is {value[:30]!r}, not a number")
    return int(value)


def time_ns(value: bytes) -> int:
    """The time of a PAX record in nanoseconds since 1970; digits beyond those are dropped.

    Raises:
        FieldInvalid: it is none.
    """
    whole, _, fraction = value.partition(b".")
    negative = whole.startswith(b"-")
    digits = whole[1:] if negative else whole
    if not digits.isdigit() or (fraction and not fraction.isdigit()) or len(digits) > 20:
        raise FieldInvalid(f"the PAX record mtime is {value[:30]!r}, not a time")
    time = int(digits) * 1_000_000_000 + int((fraction + b"0" * 9)[:9])
    return -time if negative else time


def parse_pax(body: bytes) -> dict[bytes, bytes]:
    """The records of an extended header, the last of each key.

    The pairs of GNU's sparse format 0.0, whose keys repeat, become the `GNU.sparse.map` of 0.1.

    Raises:
        FieldInvalid: a record that is not what its length says.
    """
    records: dict[bytes, bytes] = {}
    numbers: list[bytes] = []
    position = 0
    while position < len(body) and body[position]:
        space = body.find(b" ", position, position + 20)
        digits = body[position:space]
        if space < 0 or not digits.isdigit():
            raise FieldInvalid("a PAX record does not start with its length")
        end = position + int(digits)
        equals = body.find(b"=", space, end)
        if end > len(body) or end <= space + 1 or equals < 0 or body[end - 1] != 0x0A:
            raise FieldInvalid("a PAX record does not have the length it says")
        key, value = body[space + 1 : equals], body[equals + 1 : end - 1]
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            numbers.append(value)
        records[key] = value
        position = end
    if numbers:
        records[b"GNU.sparse.map"] = b",".join(numbers)
    return records


def libarchive_xattr(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Name and value of a `LIBARCHIVE.xattr.` record: percent-encoded and base64.

    Raises:
        FieldInvalid: the value is no base64.
    """
    try:
        content = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        raise FieldInvalid(f"the xattr {name[:80]!r} is not valid base64") from None
    return urllib.parse.unquote_to_bytes(name), content


def sparse_segments(area: bytes) -> list[tuple[int, int]]:
    """The (offset, length) pairs of an old GNU sparse header, 24 bytes each, up to an empty one.

    Raises:
        FieldInvalid: one of them is no number.
    """
    segments = []
    for at in range(0, len(area), 24):
        if not area[at] or not area[at + 12]:
            break
        start = number(area[at : at + 12], "a sparse map")
        segments.append((start, number(area[at + 12 : at + 24], "a sparse map")))
    return segments
