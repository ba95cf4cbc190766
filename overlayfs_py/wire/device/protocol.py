"""Numbers and layouts of the FUSE protocol up to 7.45, as in <linux/fuse.h>. Data only; any thread.

What Debian 12's header (7.38) lacks comes from the kernel's include/uapi/linux/fuse.h.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from struct import error as StructError

MAJOR = 7
MINOR = 45
MINOR_MIN = 31
"""Linux 5.4."""

ROOT_ID = 1


class Opcode(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


NO_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})
"""Requests that the kernel does not wait for; an answer to one of them is an error."""


class Notify(IntEnum):
    """enum fuse_notify_code."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7


class Init(IntFlag):
    """Flags of INIT; bits from 32 on travel in `flags2`."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    HAS_IOCTL_DIR = 1 << 11
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40


# Plain numbers where each request meets them: an IntFlag's `&` costs a microsecond.


class Open:
    """FOPEN_*: flags of the reply to OPEN, CREATE and OPENDIR."""

    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    PASSTHROUGH = 1 << 7


class Valid:
    """FATTR_*: which fields of SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


WRITE_KILL_SUIDGID = 1 << 2
FSYNC_FDATASYNC = 1
RESENT = 1 << 63
"""Set in `unique` of a request that the kernel sends again."""

# Requests. The header comes before each; what follows a layout is names or data.

IN_HEADER = Struct("<IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen (in units of 8 bytes), padding"""
INIT_IN = Struct("<IIII")
"""major, minor, max_readahead, flags; from 7.36 on flags2 and 44 unused bytes follow"""
FLAGS2 = Struct("<I")
FORGET_IN = Struct("<Q")
FORGET_ONE = Struct("<QQ")
BATCH_FORGET_IN = Struct("<II")
INTERRUPT_IN = Struct("<Q")
MKNOD_IN = Struct("<IIII")
"""mode, rdev, umask, padding"""
MKDIR_IN = Struct("<II")
"""mode, umask"""
RENAME_IN = Struct("<Q")
RENAME2_IN = Struct("<QII")
"""newdir, flags, padding"""
LINK_IN = Struct("<Q")
SETATTR_IN = Struct("<IIQQQqqqIIIIIIII")
"""valid, padding, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, unused, uid, gid, unused"""
OPEN_IN = Struct("<II")
"""flags, open_flags"""
CREATE_IN = Struct("<IIII")
"""flags, mode, umask, open_flags"""
RELEASE_IN = Struct("<QIIQ")
"""fh, flags, release_flags, lock_owner"""
READ_IN = Struct("<QQIIQII")
"""fh, offset, size, read_flags, lock_owner, flags, padding; READDIR and READDIRPLUS as well"""
WRITE_IN = Struct("<QQIIQII")
"""fh, offset, size, write_flags, lock_owner, flags, padding"""
FSYNC_IN = Struct("<QII")
"""fh, fsync_flags, padding"""
SETXATTR_IN = Struct("<II")
"""size, flags; with SETXATTR_EXT setxattr_flags and padding follow"""
SETXATTR_EXT_IN = Struct("<IIII")
GETXATTR_IN = Struct("<II")
"""size, padding; LISTXATTR as well"""
FALLOCATE_IN = Struct("<QQQII")
"""fh, offset, length, mode, padding"""
LSEEK_IN = Struct("<QQII")
"""fh, offset, whence, padding"""
COPY_FILE_RANGE_IN = Struct("<QQQQQQQ")
"""fh_in, off_in, nodeid_out, fh_out, off_out, len, flags"""
STATX_IN = Struct("<IIQII")
"""getattr_flags, reserved, fh, sx_flags, sx_mask"""
IOCTL_IN = Struct("<QIIQII")
IOCTL_DIR = 1 << 4
"""fh, flags, cmd, arg, in_size, out_size; in_size bytes follow"""

# Replies.

OUT_HEADER = Struct("<IiQ")
"""len, error (negative errno), unique; a notification has its code as error and unique 0"""
INIT_OUT = Struct("<IIIIHHIIHHIIH22x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
max_pages, map_alignment, flags2, max_stack_depth, request_timeout, unused"""
_ATTR = "QQQqqqIIIIIIIIII"
"""ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags"""
_ENTRY = "QQQQII" + _ATTR
"""nodeid, generation, entry_valid, attr_valid, their nanoseconds, attributes"""
ENTRY_OUT = Struct("<IiQ" + _ENTRY)
ENTRY = Struct("<" + _ENTRY)
"""struct fuse_entry_out."""
ATTR_OUT = Struct("<IiQQII" + _ATTR)
"""header, attr_valid, attr_valid_nsec, dummy, attributes"""
STATX_OUT = Struct("<IiQ" + "QII16x" + "IIQIIIH2xQQQQ" + 4 * "qI4x" + "IIII112x")
"""header, attr_valid, attr_valid_nsec, flags; mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks,
attributes_mask; seconds and nanoseconds of atime, btime, ctime, mtime; rdev_major, rdev_minor, dev_major, dev_minor"""
IOCTL_OUT = Struct("<IiQiIII")
"""header, result, flags, in_iovs, out_iovs; data follows"""
OPEN_OUT = Struct("<IiQQIi")
"""header, fh, open_flags, backing_id"""
CREATE_OUT = Struct("<IiQ" + _ENTRY + "QIi")
WRITE_OUT = Struct("<IiQII")
"""header, size, padding; GETXATTR and LISTXATTR asked for a size as well"""
LONG_OUT = Struct("<IiQQ")
"""header and one number: LSEEK and the 64-bit COPY_FILE_RANGE"""
STATFS_OUT = Struct("<IiQQQQQQIII28x")
"""header, blocks, bfree, bavail, files, ffree, bsize, namelen, frsize"""
DIRENT = Struct("<QQII")
"""ino, off, namelen, type; the name follows, padded to 8 bytes"""
DIRENTPLUS = Struct("<" + _ENTRY + "QQII")
INVAL_INODE_OUT = Struct("<IiQQqq")
"""header, nodeid, offset, length; offset -1: attributes only"""
INVAL_ENTRY_OUT = Struct("<IiQQII")
"""header, parent, namelen, flags; the name and a zero byte follow"""

# ioctl(2) on /dev/fuse.

DEV_IOC_CLONE = 0x8004E500
DEV_IOC_BACKING_OPEN = 0x4010E501
DEV_IOC_BACKING_CLOSE = 0x4004E502
BACKING_MAP = Struct("<iIQ")
"""fd, flags, padding"""


class Truncated(Exception):
    """A request ends before its fixed part does."""


def take(layout: Struct, body: memoryview) -> tuple[int, ...]:
    """The fixed part of a request.

    Raises:
        Truncated: there is not enough of it.
    """
    try:
        return layout.unpack_from(body)
    except StructError:
        raise Truncated(f"{len(body)} bytes where {layout.size} are needed") from None
