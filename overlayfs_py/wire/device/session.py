"""One connection to the kernel: reads requests, has them done, replies.

A reader thread takes a request and runs its verb straight away; only slow work (`Fault`) leaves it, for one of a
bounded number of worker threads, which then also finishes the request and replies. So a read that waits for a disk
holds up nothing but itself.

Threads: `start` and `stop` belong to the one that supervises; the rest is the readers' and workers'.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from overlayfs_py.overlay.faults import RESTARTS_MAX, THREADS_MAX, Fault
from overlayfs_py.wire.device import protocol, replies
from overlayfs_py.wire.device.decode import Header, malformed, name_of
from overlayfs_py.wire.device.laned import Laned
from overlayfs_py.wire.device.negotiate import BUFFER_SIZE, WRITE_MAX, Terms
from overlayfs_py.wire.device.notify import Notifier
from overlayfs_py.wire.device.patience import Patience
from overlayfs_py.wire.device.protocol import FORGET_ONE, IN_HEADER, NO_REPLY, Opcode
from overlayfs_py.wire.device.requests import Prepared, Reply, Requests
from overlayfs_py.wire.device.verbs import DeviceDispatch, Listed
from overlayfs_py.wire.dispatch import Refused

if TYPE_CHECKING:
    from overlayfs_py.overlay.node import Node

log = logging.getLogger(__name__)

_LOOKUP, _GETATTR = int(Opcode.LOOKUP), int(Opcode.GETATTR)
_READ = int(Opcode.READ)
_FREQUENT = frozenset({_LOOKUP, _GETATTR, _READ})
_SIGKILL_BIT = 1 << 8
_INTERRUPT_S = 0.005
_ENDED = (errno.ENODEV, errno.ECONNABORTED)
"""Of reading a request: the mount is gone, or went while the request was handed over (fuse_dev_do_read())."""


class Session:
    """The requests of one mount.

    Args:
        dispatch: what they ask for.
        fd: /dev/fuse after INIT; stays the caller's.
        terms: what INIT agreed on.
        on_end: called once, from a reader's thread, when the mount is gone.
        readers: how many threads read requests.
        poll_us: how long a reader looks for the next request before it sleeps; 0: not at all.
        laned: answers what needs no Python; then one reader reads.
    """

    def __init__(
        self,
        dispatch: DeviceDispatch,
        fd: int,
        terms: Terms,
        on_end: Callable[[], None],
        *,
        readers: int = 1,
        poll_us: int = 0,
        laned: Laned | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._requests = Requests(dispatch, terms)
        self._on_end = on_end
        self._poll_us = poll_us
        self._laned = laned
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        os.set_blocking(fd, False)
        self._notifier = Notifier(fd)
        self._fds = [fd, *(_clone(fd) for _ in range(readers - 1))]
        # One reply with data per reader; its pages stay, which a fresh buffer of this size would not.
        self._out = {
            fd: memoryview(bytearray(protocol.OUT_HEADER.size + WRITE_MAX)) for fd in self._fds
        }
        self._threads: list[threading.Thread] = []
        self._workers = ThreadPoolExecutor(THREADS_MAX, "fuse-slow")
        self._slow: dict[int, int] = {}
        self._changed: list[int] = []
        dispatch.overlay.attributes_changed = self._attributes_changed
        if terms.lists_by_node:
            dispatch.listed = Listed()
        if laned is not None:
            dispatch.links_known = self._links_known

    # Threads

    def start(self) -> None:
        for number, fd in enumerate(self._fds):
            thread = threading.Thread(target=self._read, args=(fd,), name=f"fuse-{number}")
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Return when no request is under way any more; blocks."""
        with self._dispatch.lock:
            self._dispatch.gate.open()
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            self._join(thread)
        self._workers.shutdown()
        for fd in self._fds[1:]:
            os.close(fd)
        os.close(self._wake)

    def _join(self, thread: threading.Thread) -> None:
        while self._laned is not None and thread.native_id is not None and thread.is_alive():
            self._laned.lane.interrupt(thread.native_id)
            thread.join(_INTERRUPT_S)
        thread.join()

    def _read(self, fd: int) -> None:
        try:
            if self._laned is None:
                self._serve(fd)
            else:
                self._serve_laned(fd, self._laned)
        except Exception:
            log.exception("a reader of requests failed: the mount ends")
        finally:
            self._on_end()

    def _serve(self, fd: int) -> None:
        """Answer requests until there can be no more."""
        readv = os.readv
        patience = Patience(self._poll_us)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        buffer = bytearray(BUFFER_SIZE)
        buffers = [buffer]
        clock = time.perf_counter
        until = 0.0
        looked = False
        while True:
            if not until:
                # Nothing has come yet, most likely: asking would cost a call and an exception more.
                patience.sleep()
                poll.poll()
                patience.woken()
            if self._stopping:
                return
            try:
                count = readv(fd, buffers)
            except BlockingIOError:
                if until and clock() < until:
                    looked = True
                    continue
                if until:
                    patience.miss()
                until = 0.0
                looked = False
                continue
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    # The request was withdrawn while it was being handed over.
                    continue
                if error.errno not in _ENDED:
                    raise
                return
            if looked:
                patience.hit()
                looked = False
            if self.answer(fd, memoryview(buffer), count):
                # The request is still worked on, and its data is in here.
                buffer = bytearray(BUFFER_SIZE)
                buffers = [buffer]
            until = patience.deadline()

    def _serve_laned(self, fd: int, laned: Laned) -> None:
        """The same, after the lane has taken its own."""
        lane = laned.lane
        buffer = bytearray(BUFFER_SIZE)
        view = memoryview(buffer)
        while not self._stopping:
            count = lane.next(fd, self._wake, buffer, self._poll_us)
            if count < 0:
                return
            if self._lane_can_after_all(fd, laned, view[:count]):
                continue
            if count and self.answer(fd, view, count):
                # The request is still worked on, and its data is in here.
                buffer = bytearray(BUFFER_SIZE)
                view = memoryview(buffer)

    def _lane_can_after_all(self, fd: int, laned: Laned, request: memoryview) -> bool:
        """Let the lane have the directories that it wants for a request, of which a rename has two."""
        for _ in range(2):
            wanted, listing, impure = laned.lane.wanted()
            # A name that slow work is going to change must not come back to the lane before it is changed.
            if not wanted or self._slow:
                return False
            laned.publish(wanted, listing=listing, impure=impure)
            if laned.lane.answer(fd, request) is True:
                return True
        return False

    def _links_known(self, id: int, links: int) -> None:
        # Slow work may be about to change them.
        if self._laned is not None and not self._slow:
            self._laned.lane.set_links(id, links)

    # One request

    def answer(self, fd: int, buffer: memoryview, count: int) -> bool:
        """Answer the request in the first `count` bytes; True if the buffer is still needed."""
        if count < IN_HEADER.size:
            log.warning("a request of %d bytes has no header", count)
            return False
        fields = IN_HEADER.unpack_from(buffer)
        if self._laned is not None:
            self._laned.recount()
        body = buffer[IN_HEADER.size : count]
        if fields[1] in _FREQUENT and fields[0] == count and not fields[7]:
            reply = self._at_once(fd, fields[1], fields[2], fields[3], body)
            if reply is not None:
                if not self._write(fd, fields[2], reply):
                    self._take_back(fields[1], reply)
                return False
        header = Header._make(fields)
        if self._laned is not None and header.length == count:
            self._laned.before(header.opcode, header.node, body)
        if header.opcode in NO_REPLY:
            if header.length == count:
                self._note(header, body)
            return False
        unique = header.unique
        try:
            if header.length != count:
                raise malformed(f"{count} bytes say that they are {header.length}")
            prepared = self._requests.prepare(header, body)
            if prepared is None:
                self._write(fd, unique, self._unknown(header))
                return False
            outcome = self._dispatch.attempt(prepared.call)
        except Refused as refused:
            self._write(fd, unique, replies.failed(unique, refused.errno))
            return False
        except Exception as error:
            number = self._dispatch.refusal(f"request {header.opcode}", error).errno
            self._write(fd, unique, replies.failed(unique, number))
            return False
        if isinstance(outcome, Fault):
            self._begin_slow(fd, header, prepared, outcome)
            return header.opcode == Opcode.WRITE
        if self._laned is not None and not self._slow:
            self._laned.after(header.opcode, header.node, body)
        self._reply(fd, unique, prepared, outcome)
        return False

    def _at_once(
        self, fd: int, opcode: int, unique: int, node: int, body: memoryview
    ) -> bytes | memoryview | None:
        """The reply to a frequent request; None: it is to go the long way."""
        try:
            if opcode == _READ:
                fh, offset, size = protocol.take(protocol.READ_IN, body)[:3]
                if size > WRITE_MAX or offset >> 62:
                    return None
                return self._dispatch.read_now(unique, fh, offset, size, self._out[fd])
            if opcode == _GETATTR:
                return self._dispatch.getattr_now(unique, node)
            return self._dispatch.lookup_now(unique, node, name_of(body))
        except Exception:
            # The long way meets it again, and says what it was.
            return None

    def _take_back(self, opcode: int, reply: bytes | memoryview) -> None:
        """Nobody was told of the node in the reply to a LOOKUP."""
        (told,) = protocol.FORGET_IN.unpack_from(reply, protocol.OUT_HEADER.size)
        if opcode == _LOOKUP and told:
            self._dispatch.forget([(told, 1)])

    def _reply(self, fd: int, unique: int, prepared: Prepared, result: Any) -> None:
        try:
            reply = prepared.reply(unique, result)
        except Exception as error:
            number = self._dispatch.refusal(prepared.call.name, error).errno
            reply = replies.failed(unique, number)
        if not self._write(fd, unique, reply) and prepared.undo is not None:
            prepared.undo(result)

    def _write(self, fd: int, unique: int, reply: Reply) -> bool:
        """Send a reply; False if nobody waits for it any more."""
        if self._changed:
            self._tell_changed()
        try:
            if isinstance(reply, list):
                os.writev(fd, reply)
            else:
                os.write(fd, reply)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN):
                return False
            log.error("the kernel refuses a reply: %s", error.strerror)
            try:
                os.write(fd, replies.failed(unique, errno.EIO))
            except OSError:
                return False
        return True

    def _unknown(self, header: Header) -> Reply:
        opcode = header.opcode
        if opcode == Opcode.DESTROY:
            return replies.done(header.unique)
        # ENOTTY: what ioctl(2) gives for a command that a file does not know.
        number = errno.ENOTTY if opcode == Opcode.IOCTL else errno.ENOSYS
        return replies.failed(header.unique, number)

    def _note(self, header: Header, body: memoryview) -> None:
        """Take what is not answered."""
        if header.opcode == Opcode.FORGET and len(body) >= protocol.FORGET_IN.size:
            self._dispatch.forget([(header.node, protocol.FORGET_IN.unpack_from(body)[0])])
        elif header.opcode == Opcode.BATCH_FORGET and len(body) >= protocol.BATCH_FORGET_IN.size:
            count = protocol.BATCH_FORGET_IN.unpack_from(body)[0]
            rest = body[protocol.BATCH_FORGET_IN.size :]
            whole = min(count, len(rest) // FORGET_ONE.size)
            self._dispatch.forget(FORGET_ONE.iter_unpack(rest[: whole * FORGET_ONE.size]))
        elif header.opcode == Opcode.INTERRUPT and len(body) >= protocol.INTERRUPT_IN.size:
            unique = protocol.INTERRUPT_IN.unpack_from(body)[0]
            pid = self._slow.get(unique)
            if pid is not None and _dying(pid):
                self._slow[unique] = -1

    # Slow requests

    def _begin_slow(self, fd: int, header: Header, prepared: Prepared, fault: Fault) -> None:
        self._dispatch.pin(prepared.call)
        self._slow[header.unique] = header.pid
        self._workers.submit(self._finish_slow, fd, header.unique, prepared, fault)

    def _finish_slow(self, fd: int, unique: int, prepared: Prepared, fault: Fault) -> None:
        try:
            result = self._after(unique, prepared, fault)
        except Refused as refused:
            self._write(fd, unique, replies.failed(unique, refused.errno))
        except BaseException:
            log.exception("%s: failed while it waited for slow work", prepared.call.name)
            self._write(fd, unique, replies.failed(unique, errno.EIO))
        else:
            self._reply(fd, unique, prepared, result)
        finally:
            self._slow.pop(unique, None)
            self._dispatch.unpin(prepared.call)

    def _after(self, unique: int, prepared: Prepared, fault: Fault) -> Any:
        """The result of a call, its slow work done as often as it asks for some. Raises Refused."""
        dispatch, call = self._dispatch, prepared.call
        for _ in range(RESTARTS_MAX):
            if self._slow.get(unique) == -1:
                # Whoever asked is being killed, and nothing has been changed yet.
                raise Refused(errno.EINTR)
            try:
                result = fault.work()
            except Exception as error:
                raise dispatch.refusal(call.name, error) from None
            if fault.answer:
                return dispatch.settle(call, result)
            if self._laned is not None:
                self._laned.recount()
            outcome = dispatch.attempt(call)
            if not isinstance(outcome, Fault):
                return outcome
            fault = outcome
        raise dispatch.endless(call)

    # Notifications

    def _attributes_changed(self, node: Node) -> None:
        """Called under the mount's lock, by a verb; told before that verb's reply."""
        id = self._dispatch.id_of(node)
        if id is not None:
            self._changed.append(id)

    def _tell_changed(self) -> None:
        while self._changed:
            try:
                id = self._changed.pop()
            except IndexError:
                return
            self._notifier.attributes(id)

    def node_changed(self, id: int) -> None:
        """The same by id."""
        self._changed.append(id)


def _clone(fd: int) -> int:
    """Another descriptor of the same connection, with requests under way of its own."""
    cloned = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(cloned, protocol.DEV_IOC_CLONE, fd.to_bytes(4, "little"))
    except BaseException:
        os.close(cloned)
        raise
    return cloned


def _dying(pid: int) -> bool:
    """Whether SIGKILL is on its way to a thread; other signals do not end a call on a local filesystem."""
    try:
        with open(f"/proc/{pid}/status") as status:
            pending = [line for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    except OSError:
        return False
    return any(int(line.split()[1], 16) & _SIGKILL_BIT for line in pending)
