"""Headers as Go's archive/tar writes them, to the byte.

The writers of eStargz compress a file together with the header of the next one; where the first need not
be fetched, the second is made anew from the table of contents. What is in no table (times below a second,
records of other kinds) is lost: whoever uses this compares what comes of it. Source: Go 1.10 and later,
archive/tar/writer.go, common.go and strconv.go.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field

from layerstore.oci.tar_writer import BLOCK, pax_record

FORMS = ("ustar", "pax", "gnu")
"""What a header is written as where it does not matter: Go keeps to the format that it has read."""

_NAME_SIZE, _PREFIX_SIZE, _OWNER_SIZE = 100, 155, 32
_MAGIC = {"ustar": b"ustar\x0000", "pax": b"ustar\x0000", "gnu": b"ustar  \0"}
_LONG_NAME = b"././@LongLink"


@dataclass(slots=True)
class Header:
    """An entry. `kind`: its type as tar has it. `mtime`: in seconds."""

    name: bytes
    kind: bytes
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    link: bytes = b""
    uname: bytes = b""
    gname: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def header(entry: Header, form: str) -> bytes:
    """An entry's header, with what belongs before it.

    Args:
        form: one of `FORMS`.
    """
    records = _records(entry)
    if form == "gnu" and not entry.xattrs:
        long = b"".join(
            _raw(_LONG_NAME, kind, value + b"\0", "gnu")
            for kind, value in ((b"L", entry.name), (b"K", entry.link))
            if len(value) > _NAME_SIZE
        )
        return long + _block(entry, entry.name, "gnu")
    split = _split(entry.name)
    if form != "pax" and not records.keys() - {b"path"} and (split or b"path" not in records):
        prefix, name = split or (b"", entry.name)
        return _block(entry, name, "ustar", prefix)
    if not records:
        return _block(entry, entry.name, "pax")
    directory, file = posixpath.split(entry.name)
    name = posixpath.normpath(posixpath.join(directory, b"PaxHeaders.0", file))
    body = b"".join(pax_record(key, records[key]) for key in sorted(records))
    return _raw(name, b"x", body, "pax") + _block(entry, entry.name, "pax")


def _records(entry: Header) -> dict[bytes, bytes]:
    """What only PAX has room for; `path` also where ustar can split it."""
    records = {b"SCHILY.xattr." + name: value for name, value in entry.xattrs.items()}
    texts = (
        (b"path", entry.name, _NAME_SIZE),
        (b"linkpath", entry.link, _NAME_SIZE),
        (b"uname", entry.uname, _OWNER_SIZE),
        (b"gname", entry.gname, _OWNER_SIZE),
    )
    records |= {key: text for key, text, room in texts if len(text) > room or not text.isascii()}
    numbers = (
        (b"uid", entry.uid, 8),
        (b"gid", entry.gid, 8),
        (b"size", entry.size, 12),
        (b"mtime", entry.mtime, 12),
    )
    return records | {
        key: b"%d" % number for key, number, room in numbers if not _fits(number, room)
    }


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    length = len(name)
    if length <= _NAME_SIZE or not name.isascii():
        return None
    if length > _PREFIX_SIZE + 1:
        length = _PREFIX_SIZE + 1
    elif name.endswith(b"/"):
        length -= 1
    at = name.rfind(b"/", 0, length)
    rest = len(name) - at - 1
    if at <= 0 or at > _PREFIX_SIZE or not 0 < rest <= _NAME_SIZE:
        return None
    return name[:at], name[at + 1 :]


def _block(entry: Header, name: bytes, form: str, prefix: bytes = b"") -> bytes:
    block = bytearray(BLOCK)
    block[156:157] = entry.kind
    texts = (
        (0, name, _NAME_SIZE),
        (157, entry.link, _NAME_SIZE),
        (265, entry.uname, _OWNER_SIZE),
        (297, entry.gname, _OWNER_SIZE),
        (345, prefix, _PREFIX_SIZE),
    )
    for at, text, room in texts:
        text = _ascii(text) if form == "pax" else text
        cut = text[:room]
        if len(text) > room and cut.endswith(b"/"):
            cut = cut.rstrip(b"/")
            # Go leaves what stands behind the NUL that it puts there.
            block[at : at + room] = cut + b"\0" + text[len(cut) + 1 : room]
        else:
            block[at : at + len(cut)] = cut
    numbers = (
        (100, entry.mode, 8),
        (108, entry.uid, 8),
        (116, entry.gid, 8),
        (124, entry.size, 12),
        (136, entry.mtime, 12),
        (329, entry.major, 8),
        (337, entry.minor, 8),
    )
    for at, number, room in numbers:
        block[at : at + room] = _number(number, room, form)
    return _sealed(block, form)


def _raw(name: bytes, kind: bytes, body: bytes, form: str) -> bytes:
    """A header that carries what others have no room for."""
    block = bytearray(BLOCK)
    name = _ascii(name)[:_NAME_SIZE].rstrip(b"/")
    block[: len(name)] = name
    for at, number, room in ((100, 0, 8), (108, 0, 8), (116, 0, 8), (124, len(body), 12)):
        block[at : at + room] = _number(number, room, form)
    block[136:148] = _number(0, 12, form)
    block[156:157] = kind
    return _sealed(block, form) + body + bytes(-len(body) % BLOCK)


def _sealed(block: bytearray, form: str) -> bytes:
    block[257:265] = _MAGIC[form]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _number(number: int, room: int, form: str) -> bytes:
    if _fits(number, room):
        return b"%0*o\0" % (room - 1, number)
    if form == "gnu":
        packed = bytearray((number % (1 << 8 * room)).to_bytes(room, "big"))
        packed[0] |= 0x80
        return bytes(packed)
    return b"%0*o\0" % (room - 1, 0)


def _fits(number: int, room: int) -> bool:
    return 0 <= number < 1 << 3 * (room - 1)


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(byte for byte in text if byte < 0x80)
