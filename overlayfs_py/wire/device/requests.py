"""What is on the wire, as requests of dispatch: one short method per opcode, in the kernel's order.

Nothing that arrives is trusted: lengths are checked before anything is read, and a name that could lead out of its
directory is refused, although the kernel sends none. What does not hold together is EINVAL. Any thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from overlayfs_py.freezing import FREEZE, THAW
from overlayfs_py.overlay.values import Attributes, Changes
from overlayfs_py.wire.call import Call
from overlayfs_py.wire.device import protocol, replies
from overlayfs_py.wire.device.decode import (
    Header,
    check_range,
    checked,
    malformed,
    name_of,
    time_of,
    two_strings,
)
from overlayfs_py.wire.device.killpriv import CAPABILITY, KillOrders
from overlayfs_py.wire.device.negotiate import WRITE_MAX, Terms
from overlayfs_py.wire.device.protocol import Opcode, Valid
from overlayfs_py.wire.device.verbs import DeviceDispatch, Opened
from overlayfs_py.wire.dispatch import WireEntry

Reply = bytes | memoryview | list[bytes]


class Prepared(NamedTuple):
    """A call, the reply to make of its result, and how to take back what a lost reply has counted."""

    call: Call[Any]
    reply: Callable[[int, Any], Reply]
    undo: Callable[[Any], None] | None = None


def _done(unique: int, result: None) -> Reply:
    return replies.done(unique)


class Requests:
    """Decodes the requests of one mount under the terms that were agreed."""

    def __init__(self, dispatch: DeviceDispatch, terms: Terms) -> None:
        self._dispatch = dispatch
        self._killpriv = terms.killpriv
        self._kill_orders = KillOrders(terms.killpriv)
        extended = terms.flags & protocol.Init.SETXATTR_EXT
        self._handles = bool(terms.flags & protocol.Init.EXPORT_SUPPORT)
        self._setxattr_in = protocol.SETXATTR_EXT_IN if extended else protocol.SETXATTR_IN
        self._by_opcode: dict[int, Callable[[Header, memoryview], Prepared]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.STATX: self._statx,
            Opcode.IOCTL: self._ioctl,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.CREATE: self._create,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self._copy_file_range_64,
        }
        if terms.lists_by_node:
            del self._by_opcode[Opcode.OPENDIR]

    def prepare(self, header: Header, body: memoryview) -> Prepared | None:
        """The call for a request; None if nobody here can do it.

        FLUSH is not among them: nothing is held back between write and close, and after one ENOSYS the kernel stops
        asking, which halves the cost of open and close. So it is with OPENDIR and RELEASEDIR where directories are
        listed by node.

        Raises:
            OverlayError: EINVAL for what is malformed, ESTALE for a node or handle that is not known.
        """
        decode = self._by_opcode.get(header.opcode)
        if decode is None:
            return None
        if header.extensions:
            kept = len(body) - 8 * header.extensions
            if kept < 0:
                raise malformed("extensions longer than the request")
            body = body[:kept]
        try:
            return decode(header, body)
        except protocol.Truncated as error:
            raise malformed(str(error)) from None

    # Replies that name a node

    def _entry(self, call: Call[WireEntry]) -> Prepared:
        return Prepared(call, self._reply_entry, self._undo_entry)

    def _reply_entry(self, unique: int, told: WireEntry) -> Reply:
        dispatch = self._dispatch
        return replies.entry(
            unique, told, dispatch.timeout, dispatch.attribute_timeout(told.node_id)
        )

    def _undo_entry(self, told: WireEntry) -> None:
        if told.node_id:
            self._dispatch.forget([(told.node_id, 1)])

    def _reply_created(self, unique: int, opened: Opened) -> Reply:
        return replies.created(unique, opened.entry, opened.file, opened.flags, opened.backing)

    def _reply_opened(self, unique: int, opened: Opened) -> Reply:
        return replies.opened(unique, opened.file, opened.flags, opened.backing)

    def _undo_opened(self, opened: Opened) -> None:
        dispatch = self._dispatch
        dispatch.attempt(dispatch.release_file(opened.file))
        if opened.entry:
            dispatch.forget([(opened.entry[0], 1)])

    # Names

    def _lookup(self, header: Header, body: memoryview) -> Prepared:
        if self._handles and bytes(body[:3]) in (b".\0", b"..\0"):
            found = self._dispatch.parent if body[1] else self._dispatch.itself
            return self._entry(found(header.node))
        return self._entry(self._dispatch.lookup(header.node, name_of(body)))

    def _symlink(self, header: Header, body: memoryview) -> Prepared:
        name, target = two_strings(body, 0)
        caller = header.caller()
        return self._entry(self._dispatch.symlink(header.node, checked(name), target, caller))

    def _mknod(self, header: Header, body: memoryview) -> Prepared:
        mode, rdev, umask, _ = protocol.take(protocol.MKNOD_IN, body)
        name = name_of(body, protocol.MKNOD_IN.size)
        caller = header.caller(umask)
        device = replies.rdev_of(rdev)
        return self._entry(self._dispatch.mknod(header.node, name, mode & _MODE, device, caller))

    def _mkdir(self, header: Header, body: memoryview) -> Prepared:
        mode, umask = protocol.take(protocol.MKDIR_IN, body)
        name = name_of(body, protocol.MKDIR_IN.size)
        return self._entry(
            self._dispatch.mkdir(header.node, name, mode & _MODE, header.caller(umask))
        )

    def _unlink(self, header: Header, body: memoryview) -> Prepared:
        call = self._dispatch.unlink(header.node, name_of(body), header.caller())
        return Prepared(call, _done)

    def _rmdir(self, header: Header, body: memoryview) -> Prepared:
        call = self._dispatch.rmdir(header.node, name_of(body), header.caller())
        return Prepared(call, _done)

    def _rename(self, header: Header, body: memoryview) -> Prepared:
        (target,) = protocol.take(protocol.RENAME_IN, body)
        return self._renamed(header, target, 0, two_strings(body, protocol.RENAME_IN.size))

    def _rename2(self, header: Header, body: memoryview) -> Prepared:
        target, flags, _ = protocol.take(protocol.RENAME2_IN, body)
        return self._renamed(header, target, flags, two_strings(body, protocol.RENAME2_IN.size))

    def _renamed(
        self, header: Header, target: int, flags: int, names: tuple[bytes, bytes]
    ) -> Prepared:
        old, new = checked(names[0]), checked(names[1])
        call = self._dispatch.rename(header.node, old, target, new, flags, header.caller())
        return Prepared(call, _done)

    def _link(self, header: Header, body: memoryview) -> Prepared:
        (source,) = protocol.take(protocol.LINK_IN, body)
        name = name_of(body, protocol.LINK_IN.size)
        return self._entry(self._dispatch.link(source, header.node, name, header.caller()))

    # Nodes

    def _reply_attributes(self, id: int) -> Callable[[int, Any], Reply]:
        def reply(unique: int, found: Attributes) -> Reply:
            return replies.attributes(unique, found, self._dispatch.attribute_timeout(id))

        return reply

    def _getattr(self, header: Header, body: memoryview) -> Prepared:
        # The handle that the kernel may name besides says nothing that the node does not.
        call = self._dispatch.getattr(header.node)
        return Prepared(call, self._reply_attributes(header.node))

    def _statx(self, header: Header, body: memoryview) -> Prepared:
        def reply(unique: int, found: tuple[Attributes, int | None]) -> Reply:
            timeout = self._dispatch.attribute_timeout(header.node)
            return replies.extended(unique, *found, timeout)

        protocol.take(protocol.STATX_IN, body)
        return Prepared(self._dispatch.statx(header.node), reply)

    def _ioctl(self, header: Header, body: memoryview) -> Prepared:
        # The kernel opens the file for those that are answered; what they are about is the inode.
        _, flags, command, _, in_size, out_size = protocol.take(protocol.IOCTL_IN, body)
        data = bytes(body[protocol.IOCTL_IN.size :])
        if len(data) != in_size:
            raise malformed(f"ioctl with {in_size} bytes that are {len(data)}")

        def reply(unique: int, answer: bytes) -> Reply:
            return replies.commanded(unique, answer[:out_size])

        if command in (FREEZE, THAW) and flags & protocol.IOCTL_DIR:
            order = self._dispatch.freeze if command == FREEZE else self._dispatch.thaw
            return Prepared(order(header.caller()), reply)
        return Prepared(self._dispatch.ioctl(header.node, command, data), reply)

    def _setattr(self, header: Header, body: memoryview) -> Prepared:
        # fmt: off
        (valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid,
         _) = protocol.take(protocol.SETATTR_IN, body)
        # fmt: on
        if valid & Valid.SIZE:
            check_range(size, 0)
        changes = Changes(
            mode=mode & _MODE if valid & Valid.MODE else None,
            uid=uid if valid & Valid.UID else None,
            gid=gid if valid & Valid.GID else None,
            size=size if valid & Valid.SIZE else None,
            atime_ns=time_of(valid, Valid.ATIME, Valid.ATIME_NOW, atime, atime_ns),
            mtime_ns=time_of(valid, Valid.MTIME, Valid.MTIME_NOW, mtime, mtime_ns),
        )
        if changes == Changes() and not self._kill_orders.clears(header.node, header.caller()):
            return self._getattr(header, body)
        file = fh if valid & Valid.FH else None
        call = self._dispatch.setattr(header.node, changes, header.caller(), file)
        return Prepared(call, self._reply_attributes(header.node))

    def _readlink(self, header: Header, body: memoryview) -> Prepared:
        return Prepared(self._dispatch.readlink(header.node), replies.data)

    def _statfs(self, header: Header, body: memoryview) -> Prepared:
        return Prepared(self._dispatch.statfs(), replies.statfs)

    def _setxattr(self, header: Header, body: memoryview) -> Prepared:
        # The extension tells whether setgid goes with an ACL; the union works that out for every
        # transport.
        layout = self._setxattr_in
        size, flags = protocol.take(layout, body)[:2]
        name, end, value = bytes(body[layout.size :]).partition(b"\0")
        if not end or not name or len(value) != size:
            raise malformed("xattr without a name, or of another size")
        if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
            raise malformed(f"setxattr with flags {flags:#x}")
        call = self._dispatch.setxattr(header.node, name, value, flags, header.caller())
        return Prepared(call, _done)

    def _getxattr(self, header: Header, body: memoryview) -> Prepared:
        size, _ = protocol.take(protocol.GETXATTR_IN, body)
        name, end, rest = bytes(body[protocol.GETXATTR_IN.size :]).partition(b"\0")
        if not end or rest or not name:
            raise malformed("an xattr without a name")
        if name == CAPABILITY and not size:
            self._kill_orders.asked(header.node, header.caller())
        call = self._dispatch.getxattr(header.node, name)
        return Prepared(call, lambda unique, value: replies.sized(unique, value, size))

    def _listxattr(self, header: Header, body: memoryview) -> Prepared:
        size, _ = protocol.take(protocol.GETXATTR_IN, body)
        call = self._dispatch.listxattr(header.node, header.caller())

        def reply(unique: int, names: list[bytes]) -> Reply:
            return replies.sized(unique, b"".join(name + b"\0" for name in names), size)

        return Prepared(call, reply)

    def _removexattr(self, header: Header, body: memoryview) -> Prepared:
        name, end, rest = bytes(body).partition(b"\0")
        if not end or rest or not name:
            raise malformed("an xattr without a name")
        if name == CAPABILITY:
            self._kill_orders.removed(header.node, header.caller())
        return Prepared(self._dispatch.removexattr(header.node, name, header.caller()), _done)

    # Open files

    def _open(self, header: Header, body: memoryview) -> Prepared:
        flags, _ = protocol.take(protocol.OPEN_IN, body)
        call = self._dispatch.open_file(header.node, flags, header.caller())
        return Prepared(call, self._reply_opened, self._undo_opened)

    def _create(self, header: Header, body: memoryview) -> Prepared:
        flags, mode, umask, _ = protocol.take(protocol.CREATE_IN, body)
        name = name_of(body, protocol.CREATE_IN.size)
        caller = header.caller(umask)
        call = self._dispatch.create_file(header.node, name, flags, mode & _MODE, caller)
        return Prepared(call, self._reply_created, self._undo_opened)

    def _tmpfile(self, header: Header, body: memoryview) -> Prepared:
        flags, mode, umask, _ = protocol.take(protocol.CREATE_IN, body)
        call = self._dispatch.create_nameless(
            header.node, flags, mode & _MODE, header.caller(umask)
        )
        return Prepared(call, self._reply_created, self._undo_opened)

    def _read(self, header: Header, body: memoryview) -> Prepared:
        fh, offset, size = protocol.take(protocol.READ_IN, body)[:3]
        check_range(offset, size)
        return Prepared(self._dispatch.read(fh, offset, min(size, WRITE_MAX)), replies.data)

    def _write(self, header: Header, body: memoryview) -> Prepared:
        fh, offset, size, write_flags = protocol.take(protocol.WRITE_IN, body)[:4]
        check_range(offset, size)
        data = body[protocol.WRITE_IN.size :]
        if len(data) != size:
            raise malformed(f"write of {size} bytes with {len(data)}")
        clears = write_flags & protocol.WRITE_KILL_SUIDGID or not self._killpriv
        writer = header.caller() if clears else None
        # Not copied: whoever reads requests gives the buffer away where it is still needed.
        call = self._dispatch.write_as(fh, offset, data, writer)  # type: ignore[arg-type]
        return Prepared(call, replies.written)

    def _release(self, header: Header, body: memoryview) -> Prepared:
        fh = protocol.take(protocol.RELEASE_IN, body)[0]
        return Prepared(self._dispatch.release_file(fh), _done)

    def _fsync(self, header: Header, body: memoryview) -> Prepared:
        fh, flags, _ = protocol.take(protocol.FSYNC_IN, body)
        datasync = bool(flags & protocol.FSYNC_FDATASYNC)
        return Prepared(self._dispatch.fsync(fh, datasync), _done)

    def _fallocate(self, header: Header, body: memoryview) -> Prepared:
        fh, offset, length, mode, _ = protocol.take(protocol.FALLOCATE_IN, body)
        check_range(offset, length)
        call = self._dispatch.fallocate(fh, mode, offset, length, header.caller())
        return Prepared(call, _done)

    def _lseek(self, header: Header, body: memoryview) -> Prepared:
        fh, offset, whence, _ = protocol.take(protocol.LSEEK_IN, body)
        if whence not in (3, 4):
            raise malformed(f"lseek with whence {whence}")
        check_range(offset, 0)
        return Prepared(self._dispatch.seek(fh, offset, whence), replies.number)

    def _copy_file_range(self, header: Header, body: memoryview) -> Prepared:
        return Prepared(self._copied(header, body), replies.written)

    def _copy_file_range_64(self, header: Header, body: memoryview) -> Prepared:
        return Prepared(self._copied(header, body), replies.number)

    def _copied(self, header: Header, body: memoryview) -> Call[int]:
        values = protocol.take(protocol.COPY_FILE_RANGE_IN, body)
        source, source_offset, _, target, target_offset, length, flags = values
        if flags:
            raise malformed(f"copy_file_range with flags {flags:#x}")
        # Bounded, so that a reply with 32 bits can say it, and one request does not take minutes.
        length = min(length, COPY_MAX)
        check_range(source_offset, length)
        check_range(target_offset, length)
        caller = header.caller()
        return self._dispatch.copy_file_range(
            source, source_offset, target, target_offset, length, caller
        )

    # Open directories

    def _opendir(self, header: Header, body: memoryview) -> Prepared:
        flags = self._dispatch.directory_flags

        def reply(unique: int, directory: int) -> Reply:
            return replies.opened(unique, directory, flags, 0)

        def undo(directory: int) -> None:
            self._dispatch.attempt(self._dispatch.releasedir(directory))

        return Prepared(self._dispatch.opendir(header.node), reply, undo)

    def _readdir(self, header: Header, body: memoryview) -> Prepared:
        return self._listing(header, body, plus=False)

    def _readdirplus(self, header: Header, body: memoryview) -> Prepared:
        return self._listing(header, body, plus=True)

    def _listing(self, header: Header, body: memoryview, *, plus: bool) -> Prepared:
        fh, offset, size = protocol.take(protocol.READ_IN, body)[:3]
        check_range(offset, 0)
        opened = self._dispatch.directory(header.node, fh)
        call = self._dispatch.listing(opened, offset, min(size, WRITE_MAX), plus)
        return Prepared(call, replies.data)

    def _releasedir(self, header: Header, body: memoryview) -> Prepared:
        fh = protocol.take(protocol.RELEASE_IN, body)[0]
        return Prepared(self._dispatch.releasedir(fh), _done)

    def _fsyncdir(self, header: Header, body: memoryview) -> Prepared:
        fh, flags, _ = protocol.take(protocol.FSYNC_IN, body)
        datasync = bool(flags & protocol.FSYNC_FDATASYNC)
        opened = self._dispatch.directory(header.node, fh)
        return Prepared(self._dispatch.sync_directory(opened, datasync), _done)


COPY_MAX = 1 << 30
_MODE = 0o177777
