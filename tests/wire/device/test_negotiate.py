"""INIT with kernels of several ages, as recorded flags."""

from __future__ import annotations

import struct

import pytest

from overlayfs_py.errors import OverlayError
from overlayfs_py.wire.device import negotiate, protocol
from overlayfs_py.wire.device.negotiate import Terms, Wanted
from overlayfs_py.wire.device.protocol import Init

EVERYTHING = (1 << 43) - 1


def init(minor: int, flags: int, major: int = 7) -> bytes:
    body = struct.pack("<IIII", major, minor, 131072, flags & 0xFFFFFFFF)
    if minor >= 36:
        body += struct.pack("<I44x", flags >> 32)
    return body


def agreed(minor: int, flags: int, wanted: Wanted) -> Terms:
    terms = negotiate.negotiate(init(minor, flags), wanted)
    assert terms is not None
    return terms


def test_a_new_kernel_gives_all_that_is_wanted() -> None:
    terms = agreed(45, EVERYTHING, Wanted(passthrough=True))
    assert terms.killpriv
    assert terms.passthrough
    assert terms.write_max == 1 << 20
    assert Init.POSIX_ACL in terms.flags
    assert Init.CACHE_SYMLINKS in terms.flags
    assert not int(terms.flags) & (1 << 16), "writeback"
    assert not int(terms.flags) & (1 << 1 | 1 << 10), "locks stay with the kernel"
    assert not int(terms.flags) & 1 << 17, "an open file has a handle"
    assert terms.lists_by_node


def test_what_is_not_wanted_is_not_taken() -> None:
    terms = agreed(45, EVERYTHING, Wanted(acl=False, caching=False))
    assert not terms.passthrough
    assert Init.POSIX_ACL not in terms.flags
    assert Init.CACHE_SYMLINKS not in terms.flags


SINCE = {
    31: Init.ASYNC_READ | Init.ATOMIC_O_TRUNC | Init.BIG_WRITES | Init.DONT_MASK | Init.HAS_IOCTL_DIR
    | Init.DO_READDIRPLUS | Init.READDIRPLUS_AUTO | Init.ASYNC_DIO | Init.PARALLEL_DIROPS
    | Init.POSIX_ACL | Init.MAX_PAGES | Init.CACHE_SYMLINKS | Init.NO_OPENDIR_SUPPORT,
    33: Init.HANDLE_KILLPRIV_V2 | Init.SETXATTR_EXT,
    36: Init.INIT_EXT,
    38: Init.HAS_EXPIRE_ONLY,
    40: Init.PASSTHROUGH | Init.HAS_RESEND,
    41: Init.ALLOW_IDMAP,
}  # fmt: skip
"""What serves a union, by the minor version that brought it (the history in <linux/fuse.h>)."""

HIGHEST_BIT = {31: 26, 32: 27, 33: 29, 34: 29, 35: 29, 36: 33, 37: 33, 38: 35, 39: 36, 40: 39}
HIGHEST_BIT |= {41: 40, 42: 41, 43: 42, 44: 42, 45: 42}
"""Of the flags that a kernel offers, by its minor version; it offers all up to there."""


@pytest.mark.parametrize("minor", range(31, 46))
def test_each_kernel_gives_what_it_has(minor: int) -> None:
    offered = (1 << HIGHEST_BIT[minor] + 1) - 1
    terms = agreed(minor, offered, Wanted(passthrough=True, idmap=True))
    expected = Init(0)
    for since, flags in SINCE.items():
        if since <= minor:
            expected |= flags
    assert terms.flags == expected
    assert terms.minor == minor
    assert (terms.killpriv, terms.passthrough) == (minor >= 33, minor >= 40)
    body = negotiate.reply(1, terms)[protocol.OUT_HEADER.size :]
    low, high = struct.unpack_from("<I", body, 12)[0], struct.unpack_from("<I", body, 32)[0]
    assert high << 32 | low == int(expected)
    depth = struct.unpack_from("<I", body, 36)[0]
    assert depth == (minor >= 40), "max_stack_depth"


@pytest.mark.parametrize("minor", range(31, 36))
def test_a_short_init_has_no_second_word(minor: int) -> None:
    """A kernel of before 7.36 says nothing after its flags, whatever bit 30 is."""
    terms = agreed(minor, (1 << 31) - 1, Wanted(passthrough=True, idmap=True))
    assert int(terms.flags) < 1 << 31


def test_idmapped_mounts_need_the_kernel_to_check_permissions() -> None:
    assert Init.ALLOW_IDMAP not in agreed(45, EVERYTHING, Wanted()).flags


def test_linux_5_4_gets_what_it_has() -> None:
    """7.31: neither killpriv v2 nor a second word of flags, which its INIT is too short for."""
    terms = agreed(31, (1 << 26) - 1, Wanted(passthrough=True))
    assert not terms.killpriv
    assert not terms.passthrough
    assert Init.PARALLEL_DIROPS in terms.flags
    assert int(terms.flags) < 1 << 26


def test_a_kernel_before_max_pages_writes_less_at_once() -> None:
    assert agreed(45, EVERYTHING & ~Init.MAX_PAGES, Wanted()).write_max == 128 << 10


def test_a_later_major_version_is_asked_to_come_down() -> None:
    assert negotiate.negotiate(init(0, 0, major=8), Wanted()) is None
    reply = negotiate.reply(9, None)
    assert struct.unpack_from("<IiQI", reply) == (len(reply), 0, 9, 7)


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 99), (0, 0)])
def test_older_protocols_are_refused(major: int, minor: int) -> None:
    with pytest.raises(OverlayError, match=r"Linux 5\.4"):
        negotiate.negotiate(init(minor, 0, major), Wanted())


def test_a_truncated_init_is_refused() -> None:
    with pytest.raises(OverlayError, match="truncated"):
        negotiate.negotiate(init(45, EVERYTHING)[:15], Wanted())


def test_the_reply_has_the_layout_of_fuse_init_out() -> None:
    terms = agreed(45, EVERYTHING, Wanted(passthrough=True))
    reply = negotiate.reply(5, terms)
    assert len(reply) == protocol.OUT_HEADER.size + 64
    body = reply[protocol.OUT_HEADER.size :]
    flags, flags2 = struct.unpack_from("<I", body, 12)[0], struct.unpack_from("<I", body, 32)[0]
    assert flags2 << 32 | flags == int(terms.flags)
    assert struct.unpack_from("<I", body, 20)[0] == 1 << 20, "max_write"
    assert struct.unpack_from("<H", body, 28)[0] == 256, "max_pages"
    assert struct.unpack_from("<I", body, 36)[0] == 1, "max_stack_depth"
