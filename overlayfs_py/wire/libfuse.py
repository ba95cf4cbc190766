"""The FUSE wire as pyfuse3 3.x on libfuse 3 speaks it.

An adapter only: it turns pyfuse3's calls into requests of `Dispatch` and the replies into
pyfuse3's objects. One mount per process (pyfuse3 keeps its session in module globals); runs in the
trio thread.

What this transport cannot carry: fallocate, lseek(SEEK_HOLE, SEEK_DATA), copy_file_range,
O_TMPFILE, ioctl, statx's extra fields, cached listings and symlinks. See SEMANTICS.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from overlayfs_py.overlay.values import Attributes, Caller, Changes
from overlayfs_py.wire.call import Call
from overlayfs_py.wire.dispatch import Dispatch, ListedEntry, Refused, WireEntry
from overlayfs_py.wire.driver import Driver

if TYPE_CHECKING:
    from overlayfs_py.overlay.node import Node

log = logging.getLogger(__name__)

T = TypeVar("T")

FOREVER_S = 10**9
"""A timeout of 31 years: the wire has no word for "until told otherwise"."""

REQUESTS_MAX = 256
"""Requests under way at once. Only those that wait for slow work add up; each costs one buffer."""

ROWS_AT_ONCE = 8
"""Rows looked up per step of a listing where it is not known how many fit; each one over is lost work."""


_NO_KILLPRIV_MAX = 314
"""The last libfuse known to leave FUSE_HANDLE_KILLPRIV out of its reply to INIT."""


def _libfuse_version() -> int:
    """Major times 100 plus minor, of the library that pyfuse3 is linked to."""
    return int(ctypes.CDLL(pyfuse3.__file__).fuse_version())


class _Operations(pyfuse3.Operations):
    """pyfuse3's handlers; each is a line or two, in the order of the requests in <linux/fuse.h>.

    `caller` says whether the kernel left the umask to us.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self, dispatch: Dispatch, *, acl: bool, masks_here: bool, on_live: Callable[[], None]
    ) -> None:
        super().__init__()
        self.enable_acl = acl
        self._dispatch = dispatch
        self._driver = Driver(dispatch)
        self._masks_here = masks_here
        dispatch.overlay.attributes_changed = self._changed
        self._on_live = on_live
        self._timeout_s = FOREVER_S if dispatch.timeout_s is None else dispatch.timeout_s
        # Who limits the timeouts expects changes behind our back: pages are not to be trusted.
        self._keep_cache = dispatch.timeout_s is None
        # Where setuid and setgid go (write, truncate, chown) the kernel works out the new mode and
        # sends it, and a change of nothing only goes along with a removed capability; unless it was
        # promised FUSE_HANDLE_KILLPRIV: then the change of nothing is the order to clear.
        self._clears_here = _libfuse_version() > _NO_KILLPRIV_MAX
        # How many rows fitted the last reply of an open directory.
        self._fit: dict[int, int] = {}
        self._absent = EntryAttributes()
        self._absent.st_ino = 0
        self._absent.entry_timeout = self._absent.attr_timeout = self._timeout_s

    async def _run(self, request: Callable[..., Call[T]], *arguments: Any) -> T:
        try:
            return await self._driver.run(request, *arguments)
        except Refused as refused:
            raise FUSEError(refused.errno) from None

    def _caller(self, ctx: RequestContext) -> Caller:
        return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask if self._masks_here else 0)

    def _attributes(self, attributes: Attributes) -> EntryAttributes:
        reply = EntryAttributes()
        reply.st_ino = attributes.ino
        reply.entry_timeout = reply.attr_timeout = self._timeout_s
        reply.st_mode = attributes.mode
        reply.st_nlink = attributes.nlink
        reply.st_uid = attributes.uid
        reply.st_gid = attributes.gid
        reply.st_rdev = attributes.rdev
        reply.st_size = attributes.size
        reply.st_blocks = attributes.blocks
        reply.st_blksize = attributes.blksize
        reply.st_atime_ns = attributes.atime_ns
        reply.st_mtime_ns = attributes.mtime_ns
        reply.st_ctime_ns = attributes.ctime_ns
        return reply

    def _entry(self, entry: WireEntry) -> EntryAttributes:
        if entry.attributes is None:
            return self._absent
        reply = self._attributes(entry.attributes)
        # One number in pyfuse3, st_ino and node id.
        reply.st_ino = entry.node_id
        reply.generation = entry.generation
        return reply

    def _changed(self, node: Node) -> None:
        """The kernel is to ask again for a node's attributes. Does not wait for anything."""
        id = self._dispatch.id_of(node)
        if id is not None:
            with contextlib.suppress(FileNotFoundError):
                pyfuse3.invalidate_inode(id, attr_only=True)

    def init(self) -> None:
        self._on_live()

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._run(self._dispatch.lookup, parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._dispatch.forget(inode_list)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._run(self._dispatch.getattr, inode))

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        caller = self._caller(ctx)
        if changes == Changes() and not self._clears_here:
            return await self.getattr(inode, ctx)
        return self._attributes(await self._run(self._dispatch.setattr, inode, changes, caller, fh))

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._run(self._dispatch.readlink, inode)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        caller = self._caller(ctx)
        return self._entry(
            await self._run(self._dispatch.symlink, parent_inode, name, target, caller)
        )

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        caller = self._caller(ctx)
        return self._entry(
            await self._run(self._dispatch.mknod, parent_inode, name, mode, rdev, caller)
        )

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        caller = self._caller(ctx)
        return self._entry(await self._run(self._dispatch.mkdir, parent_inode, name, mode, caller))

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._run(self._dispatch.unlink, parent_inode, name, self._caller(ctx))

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._run(self._dispatch.rmdir, parent_inode, name, self._caller(ctx))

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._run(
            self._dispatch.rename,
            parent_inode_old,
            name_old,
            parent_inode_new,
            name_new,
            flags,
            self._caller(ctx),
        )

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        caller = self._caller(ctx)
        return self._entry(
            await self._run(self._dispatch.link, inode, new_parent_inode, new_name, caller)
        )

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        fh = await self._run(self._dispatch.open, inode, flags, self._caller(ctx))
        return FileInfo(fh=fh, keep_cache=self._keep_cache)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry, fh = await self._run(
            self._dispatch.create, parent_inode, name, flags, mode, self._caller(ctx)
        )
        return FileInfo(fh=fh, keep_cache=self._keep_cache), self._entry(entry)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._run(self._dispatch.read, fh, off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._run(self._dispatch.write, fh, off, buf)

    async def flush(self, fh: int) -> None:
        # Nothing is held back between write and close; with this the kernel stops asking, which
        # halves the cost of open and close.
        raise FUSEError(errno.ENOSYS)

    async def release(self, fh: int) -> None:
        await self._run(self._dispatch.release, fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._run(self._dispatch.fsync, fh, datasync)

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return await self._run(self._dispatch.opendir, inode)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        offset, count, put = start_id, self._fit.get(fh, ROWS_AT_ONCE), 0
        while listed := await self._run(self._dispatch.readdirplus, fh, offset, count):
            for item in listed:
                if not self._put(token, item):
                    self._fit[fh] = max(put, 1)
                    return
                put += 1
            offset, count = listed[-1].row.offset, ROWS_AT_ONCE

    def _put(self, token: pyfuse3.ReaddirToken, item: ListedEntry) -> bool:
        """Add a row to the reply; False if it no longer fits."""
        row = item.row
        if item.entry is None:
            reply = EntryAttributes()
            # The kernel takes no reference for `.` and `..`.
            reply.st_ino = row.ino
            reply.st_mode = row.type << 12
            return bool(pyfuse3.readdir_reply(token, row.name, reply, row.offset))
        entry = self._dispatch.enter(item.entry)
        if pyfuse3.readdir_reply(token, row.name, self._entry(entry), row.offset):
            return True
        self._dispatch.forget([(entry.node_id, 1)])
        return False

    async def releasedir(self, fh: int) -> None:
        self._fit.pop(fh, None)
        await self._run(self._dispatch.releasedir, fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._run(self._dispatch.fsyncdir, fh, datasync)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        found = await self._run(self._dispatch.statfs)
        reply = StatvfsData()
        reply.f_bsize = found.f_bsize
        reply.f_frsize = found.f_frsize
        reply.f_blocks = found.f_blocks
        reply.f_bfree = found.f_bfree
        reply.f_bavail = found.f_bavail
        reply.f_files = found.f_files
        reply.f_ffree = found.f_ffree
        reply.f_favail = found.f_favail
        reply.f_namemax = found.f_namemax
        return reply

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        # pyfuse3 has looked after XATTR_CREATE and XATTR_REPLACE.
        await self._run(self._dispatch.setxattr, inode, name, value, 0, self._caller(ctx))

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await self._run(self._dispatch.getxattr, inode, name)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return await self._run(self._dispatch.listxattr, inode, self._caller(ctx))

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._run(self._dispatch.removexattr, inode, name, self._caller(ctx))


def _is_trouble(record: logging.LogRecord) -> bool:
    """Whether a line of pyfuse3's log is worth more than a debug line. It reports as an error when
    the kernel no longer waits for a reply: RELEASE is asynchronous, so an unmount overtakes it.
    """
    nobody_waits = "fuse_reply_" in record.msg and os.strerror(errno.ENOENT) in record.getMessage()
    if nobody_waits:
        log.debug("%s", record.getMessage())
    return not nobody_waits


async def serve(
    dispatch: Dispatch,
    fuse_fd: int,
    *,
    acl: bool,
    masks_here: bool,
    on_live: Callable[[], None],
) -> None:
    """Answer requests until the mount is gone or `stop` is called; ends with every handle released.

    Args:
        dispatch: made with `InodeNumbers`.
        fuse_fd: /dev/fuse, mounted; taken over and closed.
        acl: the kernel checks POSIX ACLs.
        masks_here: the mount was made so that the kernel leaves the umask to us.
        on_live: called in this thread when the kernel has begun to talk.

    Raises:
        RuntimeError: libfuse refuses to start; the reason is on stderr.
    """
    operations = _Operations(dispatch, acl=acl, masks_here=masks_here, on_live=on_live)
    # libfuse takes a descriptor that is mounted already under this name (fuse_session_mount).
    logging.getLogger("pyfuse3").addFilter(_is_trouble)
    pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", set())
    try:
        await pyfuse3.main(max_tasks=REQUESTS_MAX)
    finally:
        pyfuse3.close(unmount=False)
        dispatch.close()


def stop() -> None:
    """Make `serve` return once the requests under way are answered. From the trio thread only."""
    pyfuse3.terminate()
