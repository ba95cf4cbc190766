"""INIT: what the kernel offers, what a union takes of it. No I/O; any thread."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass

from overlayfs_py.errors import OverlayError
from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import Init

PAGE = 4096
MAX_PAGES = 256
WRITE_MAX = MAX_PAGES * PAGE
"""The most data in one request: 1 MiB, what fs.fuse.max_pages_limit allows by default."""
_OLD_WRITE_MAX = 32 * PAGE
"""Of a kernel without MAX_PAGES (FUSE_DEFAULT_MAX_PAGES_PER_REQ)."""

BUFFER_SIZE = WRITE_MAX + PAGE
"""Of a read from /dev/fuse: the data of a WRITE and what comes before it."""

_BACKGROUND_MAX = 64
_CONGESTION = 48

_ALWAYS = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.DONT_MASK
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.HAS_IOCTL_DIR
    | Init.PARALLEL_DIROPS
    | Init.MAX_PAGES
    | Init.HANDLE_KILLPRIV_V2
    | Init.SETXATTR_EXT
    | Init.INIT_EXT
    | Init.HAS_EXPIRE_ONLY
    | Init.HAS_RESEND
)
# ABORT_ERROR is left out: ENODEV at the end, aborted or not. So are the locks: flock(2) and fcntl(2)
# locks stay in the kernel.
# WRITEBACK_CACHE: its sizes and times would be the kernel's, and it excludes passthrough.
# NO_OPEN_SUPPORT: OPEN is when a file is copied up, and when it is handed to the kernel. FLUSH is turned off by its
# answer instead.
# AUTO_INVAL_DATA: nobody else changes a file; with a timeout each open begins with fresh pages anyway.
# CREATE_SUPP_GROUP: the kernel settles setgid before it asks. SECURITY_CTX: labels are the mount's (context=).


@dataclass(frozen=True)
class Wanted:
    """`caching`: only the daemon changes the tree; `acl`: the kernel checks POSIX ACLs;
    `passthrough`: this process may register backing files; `idmap`: the kernel checks permissions, without which
    it allows no idmapped mounts of this one; `handles`: a node can be found by its id after the kernel forgot it."""

    acl: bool = True
    caching: bool = True
    passthrough: bool = False
    idmap: bool = False
    handles: bool = False


@dataclass(frozen=True)
class Terms:
    """What was agreed; `minor` is the kernel's, or ours if that is lower."""

    minor: int
    flags: Init
    max_readahead: int

    @property
    def killpriv(self) -> bool:
        return bool(self.flags & Init.HANDLE_KILLPRIV_V2)

    @property
    def lists_by_node(self) -> bool:
        """Whether OPENDIR may be refused: the kernel remembers that, and caches listings from then on."""
        return bool(self.flags & Init.NO_OPENDIR_SUPPORT)

    @property
    def passthrough(self) -> bool:
        return bool(self.flags & Init.PASSTHROUGH)

    @property
    def write_max(self) -> int:
        return WRITE_MAX if self.flags & Init.MAX_PAGES else _OLD_WRITE_MAX


def negotiate(body: bytes | memoryview, wanted: Wanted) -> Terms | None:
    """The terms for a request INIT; None if the kernel speaks a later major version and is to ask again.

    Raises:
        OverlayError: EINVAL for a truncated request, EPROTO for a kernel before 5.4.
    """
    if len(body) < protocol.INIT_IN.size:
        raise OverlayError(errno.EINVAL, "truncated INIT", logging.ERROR)
    major, minor, max_readahead, low = protocol.INIT_IN.unpack_from(body)
    if major > protocol.MAJOR:
        return None
    if major < protocol.MAJOR or minor < protocol.MINOR_MIN:
        raise OverlayError(
            errno.EPROTO,
            f"the kernel speaks FUSE {major}.{minor}; 7.{protocol.MINOR_MIN} (Linux 5.4) is needed",
            logging.ERROR,
        )
    offered = low
    if low & Init.INIT_EXT and len(body) >= protocol.INIT_IN.size + protocol.FLAGS2.size:
        offered |= protocol.FLAGS2.unpack_from(body, protocol.INIT_IN.size)[0] << 32
    taken = _ALWAYS
    if wanted.acl:
        taken |= Init.POSIX_ACL
    if wanted.caching:
        taken |= Init.CACHE_SYMLINKS | Init.NO_OPENDIR_SUPPORT
    if wanted.passthrough:
        taken |= Init.PASSTHROUGH
    if wanted.idmap:
        taken |= Init.ALLOW_IDMAP
    if wanted.handles:
        taken |= Init.EXPORT_SUPPORT
    return Terms(min(minor, protocol.MINOR), Init(offered) & taken, max_readahead)


def reply(unique: int, terms: Terms | None) -> bytes:
    """The reply to INIT; without terms it only names our major version."""
    flags = 0 if terms is None else int(terms.flags)
    values: list[int] = [0] * 13
    values[0] = protocol.MAJOR
    if terms is not None:
        values = [
            protocol.MAJOR,
            protocol.MINOR,
            terms.max_readahead,
            flags & 0xFFFFFFFF,
            _BACKGROUND_MAX,
            _CONGESTION,
            terms.write_max,
            1,
            MAX_PAGES,
            0,
            flags >> 32,
            # Backing files must be on filesystems that stack on nothing; another overlay may still
            # use this mount as a layer.
            1 if terms.passthrough else 0,
            0,
        ]
    body = protocol.INIT_OUT.pack(*values)
    return protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(body), 0, unique) + body
