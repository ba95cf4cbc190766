"""File handles of real filesystems: what `origin` marks and index names are made of, and the way back from them to an
inode number. Their packed form is in `layerstore.marks`. Any thread.
"""

from __future__ import annotations

import fcntl
import os
import struct

from layerstore.marks import Handle, format_handle
from overlayfs_py import syscalls

# _IOR(0x15, 0, struct fsuuid2 { u8 len; u8 uuid[16]; }), Linux 6.9
_FS_IOC_GETFSUUID = 0x80111500


def filesystem_uuid(fd: int) -> bytes:
    """The uuid that the kernel puts in handles of this filesystem; zeros where it has none, or where neither the
    ioctl (Linux 6.9) nor /dev/disk/by-uuid tells it."""
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_GETFSUUID, bytes(17))
        return answer[1:17]
    except OSError:
        return _uuid_of_device(os.fstat(fd).st_dev)


def _uuid_of_device(device: int) -> bytes:
    folder = "/dev/disk/by-uuid"
    try:
        for name in os.listdir(folder):
            digits = name.replace("-", "")
            if len(digits) == 32 and os.stat(f"{folder}/{name}").st_rdev == device:
                return bytes.fromhex(digits)
    except (OSError, ValueError):
        pass
    return bytes(16)


# What the first bytes of a handle mean, by (type, length): ext4 and others of FILEID_INO32_GEN, tmpfs, XFS with
# 64-bit inode numbers, btrfs. Only believed after the root of the filesystem's layer was read the same way.
_INODE_OF: dict[tuple[int, int], tuple[str, int]] = {
    (1, 8): ("I", 0),
    (1, 12): ("Q", 4),
    (0x81, 12): ("Q", 0),
    (0x4D, 20): ("Q", 0),
}


def inode_number(kind: int, fid: bytes) -> int | None:
    """The inode number that a handle of a known form carries."""
    form = _INODE_OF.get((kind, len(fid)))
    if form is None:
        return None
    return int(struct.unpack_from("=" + form[0], fid, form[1])[0])


_IN_MEMORY = (0x01021994, 0x858458F6)
"""TMPFS_MAGIC and RAMFS_MAGIC (<linux/magic.h>)."""


class Filesystem:
    """What handles of one filesystem need: its uuid, and how to get from a handle to an inode number.

    Args:
        fd: a directory of the filesystem, kept by the caller as long as this object lives.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.uuid = filesystem_uuid(fd)
        self.in_memory = syscalls.filesystem_type(fd) in _IN_MEMORY
        root = syscalls.name_to_handle(fd, b"")
        self.has_handles = root is not None
        self._readable = root is not None and inode_number(*root) == os.fstat(fd).st_ino

    def handle(self, dir_fd: int, path: bytes, *, of_upper: bool = False) -> bytes | None:
        """The overlay handle of an object on this filesystem."""
        found = syscalls.name_to_handle(dir_fd, path)
        if found is None:
            return None
        return format_handle(Handle(found[0], self.uuid, found[1], of_upper))

    def inode(self, handle: Handle) -> int | None:
        """The inode number behind a handle of this filesystem, None where it cannot be told."""
        if self._readable:
            number = inode_number(handle.type, handle.fid)
            if number is not None:
                return number
        status = self._stat(handle)
        return None if status is None else status.st_ino

    def links(self, handle: Handle) -> int:
        """st_nlink of the object behind a handle, 0 where it cannot be told."""
        status = self._stat(handle)
        return 0 if status is None else status.st_nlink

    def _stat(self, handle: Handle) -> os.stat_result | None:
        """Needs CAP_DAC_READ_SEARCH in the initial user namespace, and that the object is still there."""
        try:
            fd = syscalls.open_by_handle(self._fd, handle.type, handle.fid, os.O_PATH)
        except OSError:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)
