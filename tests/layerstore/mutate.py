"""Damages tars, JSON documents and other files where it hurts. Everything is decided by the `Random` that is given."""

from __future__ import annotations

import copy
import random
import tarfile
from typing import Any

from tests.layerstore.archives import OCI, Item, digest_of, folder, hard_link, symlink, tar_of
from tests.layerstore.stores import BASE, TOP

BLOCK = 512

_FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "major": (329, 8),
    "prefix": (345, 155),
    "sparse": (386, 97),
}
"""Offset and length in a header, as POSIX and GNU tar have them."""

_NAMES = (
    *(b"", b"/", b".", b"..", b"../out", b"/etc/passwd", b"a/../../out", b"etc", b"etc/hostname"),
    *(b"link/x", b"gone/file", b".wh.", b".wh..", b".wh..wh..opq", b".wh.etc", b"n" * 100),
    *(b"etc/" * 24, b"\xff\xfe", b"a\nb", b"etc/big-link"),
)
_NUMBERS = (
    *(b"", b"0", b"1", b"777", b"00000001130", b"77777777777", b"-1", b"9", b" 12 ", b"0x10"),
    *(b"\x80" + bytes(10) + b"\x01", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xff" * 11 + b"\0"),
    *(b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, b"\0" * 12),
)
_TYPES = b"01234567SLKDMNVXgx\0AZ\xff"

_RECORDS: tuple[tuple[bytes, bytes], ...] = (
    *((b"path", name) for name in _NAMES),
    *((b"path", b"deep/" * 800 + b"x"), (b"path", b"a\0b"), (b"linkpath", b"../../out")),
    *(
        (b"linkpath", b"etc/big"),
        (b"linkpath", b""),
        (b"size", b"0"),
        (b"size", b"18446744073709551616"),
    ),
    *(
        (b"size", b"-5"),
        (b"size", b"1e3"),
        (b"size", b"3000"),
        (b"mtime", b"1e999"),
        (b"mtime", b"nan"),
    ),
    *((b"mtime", b"-99999999999999999999.5"), (b"uid", b"-1"), (b"uid", b"99999999999")),
    *(
        (b"SCHILY.xattr.user.x", b"y" * 65536),
        (b"SCHILY.xattr.", b"x"),
        (b"SCHILY.xattr.a\0b", b"x"),
    ),
    *((b"SCHILY.xattr.trusted.overlay.opaque", b"y"), (b"SCHILY.xattr.security.capability", b"\1")),
    *(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", b"99999999"),
    ),
    *(
        (b"GNU.sparse.map", b"0,3,1000,3"),
        (b"GNU.sparse.map", b"5,3,0,3"),
        (b"GNU.sparse.map", b"0"),
    ),
    *(
        (b"GNU.sparse.size", b"1099511627776"),
        (b"GNU.sparse.size", b"9"),
        (b"GNU.sparse.name", b"sp"),
    ),
    *(
        (b"GNU.sparse.offset", b"-1"),
        (b"GNU.sparse.numbytes", b"4"),
        (b"GNU.sparse.numblocks", b"999999999"),
    ),
    *((b"hdrcharset", b"BINARY"), (b"", b""), (b"x" * 3000, b"y")),
)

_RICH = [
    folder("d", 0o1777),
    Item("d/" + "long" * 40, b"l" * 600, xattrs={"user.a": "b"}),
    Item("d/device", None, tarfile.CHRTYPE, device=(1, 3)),
    Item("d/pipe", None, tarfile.FIFOTYPE),
    hard_link("hard", "d/" + "long" * 40),
    symlink("loop", "loop"),
    symlink("out", "../../../../tmp"),
    Item("out/x", b"o"),
    Item(".wh.gone"),
    Item("d/.wh..wh..opq"),
]
SEEDS = (
    BASE,
    TOP,
    tar_of(_RICH[:7]),
    tar_of(_RICH, tarfile.GNU_FORMAT),
    tar_of(_RICH[:1] + _RICH[8:]),
    tar_of([Item("old", b"x" * 100)], tarfile.USTAR_FORMAT),
)


def tar(chance: random.Random) -> bytes:
    """A tar, changed in a few places or in none."""
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 6))):
        if data:
            chance.choice(_WAYS)(data, chance)
    return bytes(data)


def _headers(data: bytearray) -> list[int]:
    return [
        at for at in range(0, len(data) - BLOCK + 1, BLOCK) if data[at + 257 : at + 262] == b"ustar"
    ]


def _field(data: bytearray, chance: random.Random) -> None:
    headers = _headers(data)
    if not headers:
        return
    at = chance.choice(headers)
    name = chance.choice(list(_FIELDS))
    offset, length = _FIELDS[name]
    if name == "type":
        value = bytes([chance.choice(_TYPES)])
    elif name in ("name", "link", "prefix"):
        value = chance.choice(_NAMES)
    elif name in ("magic", "sparse"):
        value = chance.randbytes(length)
    else:
        value = chance.choice(_NUMBERS)
    data[at + offset : at + offset + length] = value[:length].ljust(length, b"\0")
    if chance.random() < 0.9:
        seal(data, at)


def seal(data: bytearray, at: int) -> None:
    """Make the checksum of the header at an offset right."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])


def _records(data: bytearray, chance: random.Random) -> None:
    """Put a PAX header before an entry, or one that is for all."""
    body = b""
    for _ in range(chance.randrange(1, 5)):
        key, value = chance.choice(_RECORDS)
        body += _record(key, value)
    if chance.random() < 0.1:
        body = body[: chance.randrange(len(body))] + chance.randbytes(3)
    header = bytearray(BLOCK)
    header[:8] = b"PaxHeader"[:8]
    header[100:108] = b"0000644\0"
    header[124:136] = b"%011o\0" % len(body)
    header[156:157] = b"g" if chance.random() < 0.1 else b"x"
    header[257:265] = b"ustar\00000"
    seal(header, 0)
    at = chance.choice(_headers(data) or [0])
    data[at:at] = header + body + bytes(-len(body) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def _blocks(data: bytearray, chance: random.Random) -> None:
    """Leave some blocks out, or have them twice."""
    start = chance.randrange(len(data) // BLOCK + 1) * BLOCK
    end = start + chance.randrange(1, 8) * BLOCK
    if chance.random() < 0.5:
        del data[start:end]
    else:
        there = chance.randrange(len(data) // BLOCK + 1) * BLOCK
        data[there:there] = data[start:end]


def cut(data: bytearray, chance: random.Random) -> None:
    """End early."""
    del data[chance.randrange(len(data)) :]


def flip(data: bytearray, chance: random.Random) -> None:
    """Other bytes somewhere."""
    at = chance.randrange(len(data))
    new = chance.choice((chance.randbytes(chance.randrange(1, 9)), b"\xff" * 8, bytes(8)))
    data[at : at + len(new)] = new[: len(data) - at]


_WAYS = (_field, _field, _field, _records, _records, _blocks, cut, flip)

_KEYS = (
    *("manifests", "digest", "size", "mediaType", "annotations", "platform", "os", "architecture"),
    *("layers", "config", "rootfs", "diff_ids", "Config", "Layers", "RepoTags", "urls", "data"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1.5, "", "\n", "x" * 5000, [], {}, [[]], [None], {"": {}}),
    *(digest_of(b"{}"), digest_of(BASE), "sha256:" + "g" * 64, "sha512:" + "0" * 128),
    *(f"{OCI}.manifest.v1+json", f"{OCI}.index.v1+json", f"{OCI}.layer.v1.tar+zstd"),
    *("../../out", "/etc/passwd", "a\0b"),
)


def document(value: Any, chance: random.Random) -> Any:
    """A JSON document, changed in some place."""
    value = copy.deepcopy(value)
    for _ in range(chance.randrange(1, 4)):
        place = value
        while isinstance(place, dict | list) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            inner = place[key]
            if isinstance(inner, dict | list) and inner and chance.random() < 0.7:
                place = inner
                continue
            kind = chance.random()
            if kind < 0.2:
                del place[key]
            elif kind < 0.3 and isinstance(place, list):
                place.append(copy.deepcopy(inner))
            elif kind < 0.4 and isinstance(place, dict):
                place[chance.choice(_KEYS)] = copy.deepcopy(inner)
            else:
                place[key] = copy.deepcopy(chance.choice(_VALUES))
            break
    return value
