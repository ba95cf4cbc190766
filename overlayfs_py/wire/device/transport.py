"""Serves one mount through /dev/fuse: INIT, the session, the end. Blocks; runs in the main thread."""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable

from overlayfs_py.errors import OverlayError, UserError
from overlayfs_py.overlay.lookup import breaks_links
from overlayfs_py.wire.device import negotiate, patience, replies
from overlayfs_py.wire.device.laned import Laned
from overlayfs_py.wire.device.negotiate import BUFFER_SIZE, Terms, Wanted
from overlayfs_py.wire.device.passthrough import Backings
from overlayfs_py.wire.device.protocol import IN_HEADER, Opcode
from overlayfs_py.wire.device.session import Session
from overlayfs_py.wire.device.verbs import DeviceDispatch
from overlayfs_py.wire.lane import compiled

log = logging.getLogger(__name__)

_INIT_WAIT_S = 30.0
_FEW_LAYERS = 4
"""Up to this many, reading a directory's names costs no more than one lookup by Python."""
READERS = 1
"""One does it while verbs run one at a time; each further one wakes for nothing."""


def serve(
    dispatch: DeviceDispatch,
    fuse_fd: int,
    *,
    acl: bool,
    idmap: bool,
    read_only: bool,
    passthrough: bool,
    lowers: bool,
    handles: bool = False,
    device: bytes = b"",
    on_live: Callable[[], None],
    on_end: Callable[[], None],
    wait: Callable[[], None],
    readers: int = READERS,
    poll_us: int | None = None,
) -> None:
    """Answer requests until the mount is gone; ends with every handle released.

    Args:
        fuse_fd: /dev/fuse, mounted; taken over and closed.
        acl: the kernel checks POSIX ACLs.
        idmap: idmapped mounts of it may be made; the kernel must check permissions.
        read_only: nothing is ever copied up.
        passthrough: this process may hand files to the kernel (CAP_SYS_ADMIN in the initial user namespace).
        lowers: those of lower layers as well, although they may be copied up.
        handles: a file handle stays good when the kernel forgets the inode; every node is kept until it is removed.
        device: `major:minor` of the mount, b"" if that is not known.
        on_live: called in this thread when requests are being answered.
        on_end: called from a reader's thread when the mount is gone.
        wait: blocks until then, or until the mount is to be given up.
        readers: threads that read requests.
        poll_us: how long one of them looks for the next request before it sleeps; None: as long as it pays.

    Raises:
        UserError: the kernel speaks a FUSE protocol that is too old.
    """
    try:
        caching = dispatch.timeout_s is None
        wanted = Wanted(
            acl=acl, caching=caching, passthrough=passthrough, idmap=idmap, handles=handles
        )
        terms = _agree(fuse_fd, wanted)
        log.debug("FUSE 7.%d, %s", terms.minor, terms.flags)
        _read_ahead(device, terms.write_max)
        # Where lower files go to the kernel, all opens of one do so alike.
        lowers = lowers or read_only
        backed = terms.passthrough and lowers
        if handles:
            dispatch.keep_nodes()
        # The lane forgets what the kernel forgets.
        laned = _laned(dispatch, terms, backed=backed) if readers == 1 and not handles else None
        session = Session(
            dispatch,
            fuse_fd,
            terms,
            on_end,
            readers=readers,
            poll_us=patience.poll_us(poll_us),
            laned=laned,
        )
        if terms.passthrough:
            dispatch.backings = Backings(fuse_fd, lowers=lowers, changed=session.node_changed)
        session.start()
        try:
            on_live()
            wait()
        finally:
            session.stop()
            if dispatch.backings is not None:
                dispatch.backings.close()
            if laned is not None:
                laned.lane.close()
    finally:
        dispatch.close()
        os.close(fuse_fd)


def _laned(dispatch: DeviceDispatch, terms: Terms, *, backed: bool) -> Laned | None:
    """The lane, where there is one and the kernel may remember what it says.

    Args:
        backed: lower files are handed to the kernel.
    """
    lane = compiled()
    if lane is None or not terms.lists_by_node:
        return None
    state = dispatch.overlay.state
    made = lane(
        dispatch.file_flags,
        state.marks.metacopy,
        state.marks.opaque,
        publish_after=1 if len(state.lowers) <= _FEW_LAYERS else 3,
        by_number=not breaks_links(state),
        backed=backed,
        counts_links=not state.config.static_nlink,
        acl=not state.config.noacl,
        read_only=state.upper is None,
        changes=dispatch.overlay.changes_plainly,
        hands_over=terms.passthrough,
        statfs_fd=dispatch.overlay.statfs_fd,
    )
    copies = dispatch.overlay.plain_copies
    if copies is not None:
        made.copies_up(*copies)
    state.cookie = lane.cookie
    laned = Laned(made, dispatch)
    dispatch.use_ids(laned)
    return laned


def _read_ahead(device: bytes, size: int) -> None:
    """Have a file that is read from start to end asked for in requests as large as they come: 1 MiB instead of
    128 KiB. Without privilege it stays as it is.
    """
    path = b"/sys/class/bdi/%s/read_ahead_kb" % device
    try:
        with open(path, "w") as file:
            file.write(str(size >> 10))
    except OSError as error:
        log.debug("%s: %s", os.fsdecode(path), error.strerror)


def _agree(fd: int, wanted: Wanted) -> Terms:
    """Answer INIT. The kernel has sent it with the mount, so this does not wait."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(_INIT_WAIT_S * 1000):
            raise UserError("the kernel does not begin to talk on /dev/fuse")
        request = os.read(fd, BUFFER_SIZE)
        header = IN_HEADER.unpack_from(request)
        opcode, unique = header[1], header[2]
        if opcode != Opcode.INIT:
            os.write(fd, replies.failed(unique, errno.EIO))
            continue
        try:
            terms = negotiate.negotiate(memoryview(request)[IN_HEADER.size :], wanted)
        except OverlayError as error:
            os.write(fd, replies.failed(unique, error.errno or errno.EPROTO))
            raise UserError(str(error)) from None
        os.write(fd, negotiate.reply(unique, terms))
        if terms is not None:
            return terms
