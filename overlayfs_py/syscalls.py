"""System calls as the layers need them: relative to a directory descriptor, never following the last symlink.

The calls that change a tree all stand here, so that a test can stop the world before any one of them. What Python's
`os` lacks goes through ctypes, which releases the GIL while the kernel works. Any thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

NOW = -(1 << 127)
"""As a time in nanoseconds: the clock when the change is made (UTIME_NOW); no timespec is that early."""

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

FICLONE = 0x40049409

_STATFS_ROOM = 256
"""More than struct statfs has on any architecture; f_type, a long, comes first."""

OPEN_TREE_CLONE = 1
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR__ATIME = 0x70

# x86-64 and every architecture with the generic table agree on numbers from 424 on.
_SYS_OPEN_TREE = 428
_SYS_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
_libc.name_to_handle_at.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_int,
]
_libc.open_by_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
_libc.linkat.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
]
_libc.syscall.restype = ctypes.c_long


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# --- changes to a tree: every one of them, and nothing else, goes through these ---------------------------------------


def create(dir_fd: int, path: bytes, flags: int, mode: int) -> int:
    """open(2) with O_CREAT; returns the descriptor."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=dir_fd)


def tmpfile(dir_fd: int, path: bytes, mode: int) -> int:
    """open(2) with O_TMPFILE, for reading and writing; returns the descriptor."""
    return os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=dir_fd)


def mkdir(dir_fd: int, path: bytes, mode: int) -> None:
    os.mkdir(path, mode, dir_fd=dir_fd)


def mknod(dir_fd: int, path: bytes, mode: int, rdev: int) -> None:
    os.mknod(path, mode, rdev, dir_fd=dir_fd)


def symlink(target: bytes, dir_fd: int, path: bytes) -> None:
    os.symlink(target, path, dir_fd=dir_fd)


def link(old_fd: int, old: bytes, new_fd: int, new: bytes) -> None:
    _check(_libc.linkat(old_fd, old, new_fd, new, 0))


def link_descriptor(fd: int, new_fd: int, new: bytes) -> None:
    """Give the open inode `fd` (O_TMPFILE, or any with a link left) a name."""
    os.link(b"/proc/self/fd/%d" % fd, new, dst_dir_fd=new_fd, follow_symlinks=True)


def unlink(dir_fd: int, path: bytes) -> None:
    os.unlink(path, dir_fd=dir_fd)


def rmdir(dir_fd: int, path: bytes) -> None:
    os.rmdir(path, dir_fd=dir_fd)


def rename(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """renameat2(2)."""
    if flags:
        _check(_libc.renameat2(old_fd, old, new_fd, new, flags))
    else:
        os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)


def chown(dir_fd: int, path: bytes, uid: int, gid: int) -> None:
    os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=False)


def chown_descriptor(fd: int, uid: int, gid: int) -> None:
    """chown(2) of the inode an O_PATH descriptor holds."""
    os.chown(b"/proc/self/fd/%d" % fd, uid, gid)


def chown_opened(fd: int, uid: int, gid: int) -> None:
    """fchown(2)."""
    os.fchown(fd, uid, gid)


def chmod_opened(fd: int, mode: int) -> None:
    """fchmod(2)."""
    os.fchmod(fd, mode)


def setxattr_opened(fd: int, name: str | bytes, value: bytes, flags: int = 0) -> None:
    """fsetxattr(2)."""
    os.setxattr(fd, name, value, flags)


def chmod(dir_fd: int, path: bytes, mode: int) -> None:
    """chmod(2); the last component must be known not to be a symlink."""
    os.chmod(path, mode, dir_fd=None if dir_fd == AT_FDCWD else dir_fd)


def truncate(fd: int, size: int) -> None:
    os.ftruncate(fd, size)


def utimens(dir_fd: int, path: bytes, atime_ns: int | None, mtime_ns: int | None) -> None:
    """utimensat(2) without following a symlink; None leaves a time alone, NOW is the clock."""
    times = _timespec(atime_ns) + _timespec(mtime_ns)
    _check(_libc.utimensat(dir_fd, path, times, AT_SYMLINK_NOFOLLOW))


def utimens_descriptor(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """The same through a path below /proc, for an O_PATH descriptor of an inode without a name."""
    times = _timespec(atime_ns) + _timespec(mtime_ns)
    _check(_libc.utimensat(AT_FDCWD, b"/proc/self/fd/%d" % fd, times, 0))


def _timespec(ns: int | None) -> bytes:
    if ns is None:
        return struct.pack("qq", 0, UTIME_OMIT)
    if ns == NOW:
        return struct.pack("qq", 0, UTIME_NOW)
    return struct.pack("qq", ns // 1_000_000_000, ns % 1_000_000_000)


def setxattr(
    path: bytes, name: str | bytes, value: bytes, flags: int = 0, follow: bool = False
) -> None:
    os.setxattr(path, name, value, flags, follow_symlinks=follow)


def removexattr(path: bytes, name: str | bytes, follow: bool = False) -> None:
    os.removexattr(path, name, follow_symlinks=follow)


def pwrite(fd: int, data: bytes | memoryview, offset: int) -> int:
    return os.pwrite(fd, data, offset)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate(fd, mode, offset, length))


def copy_file_range(src: int, src_offset: int, dst: int, dst_offset: int, length: int) -> int:
    return os.copy_file_range(src, dst, length, src_offset, dst_offset)


def clone_file(src: int, dst: int) -> bool:
    """Make `dst` share all of `src`'s data (ioctl_ficlone(2)); False where the filesystem cannot."""
    try:
        fcntl.ioctl(dst, FICLONE, src)
    except OSError as error:
        if error.errno in (
            errno.EOPNOTSUPP,
            errno.EXDEV,
            errno.EINVAL,
            errno.ENOTTY,
            errno.EPERM,
            errno.EBADF,
            errno.ENOSYS,
            errno.ETXTBSY,
        ):
            return False
        raise
    return True


def inode_ioctl(fd: int, command: int, data: bytes) -> bytes:
    """ioctl(2) that takes or gives a structure of the size of `data`; returns what the structure is after it."""
    return fcntl.ioctl(fd, command, data)


def syncfs(fd: int) -> None:
    """syncfs(2) of the filesystem that `fd` is on."""
    _check(_libc.syncfs(fd))


def filesystem_type(fd: int) -> int:
    """f_type of statfs(2): which kind of filesystem `fd` is on."""
    buffer = ctypes.create_string_buffer(_STATFS_ROOM)
    _check(_libc.fstatfs(fd, buffer))
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF


# --- reading ----------------------------------------------------------------------------------------------------------


def stat(dir_fd: int, path: bytes) -> os.stat_result:
    """lstat(2) relative to a directory."""
    return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)


_STATX_BTIME = 0x800
_STATX_SIZE = 256
_STATX_BTIME_AT = 80


def birth_ns(dir_fd: int, path: bytes) -> int | None:
    """When an object was made, in nanoseconds; None where its filesystem does not keep that.

    With an empty path: of `dir_fd` itself.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = AT_SYMLINK_NOFOLLOW | (0 if path else AT_EMPTY_PATH)
    _check(_libc.statx(dir_fd, path, flags, _STATX_BTIME, buffer))
    if not struct.unpack_from("I", buffer)[0] & _STATX_BTIME:
        return None
    seconds, ns = struct.unpack_from("qI", buffer, _STATX_BTIME_AT)
    return int(seconds) * 1_000_000_000 + int(ns)


_HANDLE_BYTES_MAX = 128


def name_to_handle(dir_fd: int, path: bytes) -> tuple[int, bytes] | None:
    """The file handle of an object as (type, bytes); None where its filesystem has none.

    Needs no privilege. With an empty path: of `dir_fd` itself.
    """
    buffer = ctypes.create_string_buffer(
        struct.pack("Ii", _HANDLE_BYTES_MAX, 0), 8 + _HANDLE_BYTES_MAX
    )
    mount_id = ctypes.create_string_buffer(4)
    flags = AT_EMPTY_PATH if not path else 0
    if _libc.name_to_handle_at(dir_fd, path, buffer, mount_id, flags) < 0:
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ENOSYS):
            return None
        raise OSError(number, os.strerror(number))
    size, kind = struct.unpack_from("Ii", buffer.raw)
    return kind, buffer.raw[8 : 8 + size]


def open_by_handle(mount_fd: int, kind: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2); needs CAP_DAC_READ_SEARCH in the initial user namespace."""
    packed = struct.pack("Ii", len(handle), kind) + handle
    return _check(_libc.open_by_handle_at(mount_fd, packed, flags | os.O_CLOEXEC))


def clone_tree(path: bytes, read_only: bool) -> int:
    """An O_PATH descriptor of a private copy of the mount that `path` is on, rooted there, other mounts left out.

    What the kernel's overlayfs does with its layers: nothing mounted below, later or earlier, is seen through it.
    A read-only clone does not update access times either. The copy lives as long as this descriptor.
    Raises OSError (EPERM without CAP_SYS_ADMIN, ENOSYS before Linux 5.2; read-only needs 5.12).
    """
    fd = _check(
        int(
            _libc.syscall(
                _SYS_OPEN_TREE, AT_FDCWD, ctypes.c_char_p(path), OPEN_TREE_CLONE | os.O_CLOEXEC
            )
        )
    )
    if read_only:
        attributes = struct.pack(
            "QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME, 0, 0
        )
        try:
            _check(
                int(
                    _libc.syscall(
                        _SYS_MOUNT_SETATTR,
                        fd,
                        ctypes.c_char_p(b""),
                        AT_EMPTY_PATH,
                        ctypes.c_char_p(attributes),
                        ctypes.c_size_t(len(attributes)),
                    )
                )
            )
        except OSError:
            os.close(fd)
            raise
    return fd
