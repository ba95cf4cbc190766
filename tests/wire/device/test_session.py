"""Requests as bytes to replies as bytes: slow work, interrupts, forgetting, what is refused."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import threading

import pytest

from overlayfs_py.overlay.faults import RESTARTS_MAX
from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import Notify, Opcode
from overlayfs_py.wire.lane import compiled
from tests.wire.device.desk import Desk, number
from tests.wire.double import MemoryOverlay, faults

READ = struct.Struct("<QQIIQII")
CREATE = struct.Struct("<IIII")


def make(desk: Desk, name: bytes = b"file") -> tuple[int, int]:
    """A new file's node id and handle."""
    reply = desk.ask(Opcode.CREATE, 1, CREATE.pack(os.O_RDWR, 0o644, 0, 0) + name + b"\0")
    return number(reply), struct.unpack_from("<Q", reply.body, 128)[0]


def read(fh: int, offset: int = 0, size: int = 4096) -> bytes:
    return READ.pack(fh, offset, size, 0, 0, 0, 0)


def write(fh: int, data: bytes, flags: int = 0) -> bytes:
    return READ.pack(fh, 0, len(data), flags, 0, 0, 0) + data


def test_a_written_file_is_read_back(desk: Desk) -> None:
    node, fh = make(desk)
    data = os.urandom(1 << 20)
    assert desk.ask(Opcode.WRITE, node, write(fh, data)).body == struct.pack("<II", 1 << 20, 0)
    assert desk.ask(Opcode.READ, node, read(fh, size=1 << 20)).body == data


def test_slow_data_survives_the_next_request(desk: Desk, overlay: MemoryOverlay) -> None:
    """A write that waits keeps its data although the reader goes on to other requests."""
    node, fh = make(desk)
    go = threading.Event()
    overlay.before["write"] = faults(1, lambda: go.wait(30))
    body = write(fh, b"slow" * 1000)
    desk.request(Opcode.WRITE, node, body)
    desk.request(Opcode.LOOKUP, 1, b"other\0")
    (answered,) = desk.replies()
    assert answered.body[:8] == bytes(8), "the lookup came first"
    go.set()
    desk.settle()
    (written,) = desk.replies()
    assert written.body == struct.pack("<II", 4000, 0)
    assert desk.ask(Opcode.READ, node, read(fh)).body == b"slow" * 1000


def test_a_read_that_waits_holds_up_nothing(desk: Desk, overlay: MemoryOverlay) -> None:
    node, fh = make(desk)
    go = threading.Event()

    def work() -> bytes:
        go.wait(30)
        return b"from a disk"

    overlay.before["read"] = faults(1, work, answer=True)
    slow = desk.request(Opcode.READ, node, read(fh))
    for _ in range(3):
        assert desk.request(Opcode.GETATTR, node, bytes(16))
    assert len(desk.replies()) == 3
    go.set()
    desk.settle()
    (reply,) = desk.replies()
    assert (reply.unique, reply.body) == (slow, b"from a disk")


@pytest.mark.expects_log("no progress")
def test_a_call_that_never_progresses_ends(desk: Desk, overlay: MemoryOverlay) -> None:
    node, fh = make(desk)
    overlay.before["read"] = faults(RESTARTS_MAX + 5)
    assert desk.ask(Opcode.READ, node, read(fh)).error == errno.EIO


@pytest.mark.parametrize(("sent", "ends"), [(signal.SIGKILL, True), (None, False)])
def test_only_a_dying_caller_is_let_go(
    desk: Desk,
    overlay: MemoryOverlay,
    monkeypatch: pytest.MonkeyPatch,
    sent: signal.Signals | None,
    ends: bool,
) -> None:
    """A file system on a disk ignores other signals, and so do programs that rely on it."""
    monkeypatch.setattr("overlayfs_py.wire.device.session._dying", lambda pid: sent is not None)
    node, fh = make(desk)
    go = threading.Event()
    overlay.before["read"] = faults(2, lambda: go.wait(30))
    unique = desk.request(Opcode.READ, node, read(fh), pid=os.getpid())
    desk.request(Opcode.INTERRUPT, 0, struct.pack("<Q", unique))
    go.set()
    desk.settle()
    (reply,) = desk.replies()
    assert reply.error == (errno.EINTR if ends else 0)


def test_interrupts_of_what_is_done_already_are_ignored(desk: Desk) -> None:
    desk.request(Opcode.INTERRUPT, 0, struct.pack("<Q", 12345))
    assert desk.replies() == []


def test_what_the_kernel_forgets_is_forgotten(desk: Desk, overlay: MemoryOverlay) -> None:
    node, _ = make(desk)
    for _ in range(3):
        assert number(desk.ask(Opcode.LOOKUP, 1, b"file\0")) == node
    assert desk.dispatch.known == 2
    desk.request(Opcode.FORGET, node, struct.pack("<Q", 3))
    assert desk.dispatch.known == 2
    desk.request(Opcode.BATCH_FORGET, 0, struct.pack("<IIQQ", 1, 0, node, 1))
    assert desk.dispatch.known == 1
    assert len(overlay.forgotten) == 1
    assert desk.replies() == []


def test_node_ids_are_not_used_again(desk: Desk) -> None:
    node, _ = make(desk)
    desk.request(Opcode.FORGET, node, struct.pack("<Q", 1))
    assert number(desk.ask(Opcode.LOOKUP, 1, b"file\0")) > node


def test_a_listing_counts_only_the_rows_that_it_tells(desk: Desk) -> None:
    for count in range(50):
        desk.ask(Opcode.MKNOD, 1, struct.pack("<IIII", 0o100644, 0, 0, 0) + b"n%02d\0" % count)
    for node in range(2, 52):
        desk.request(Opcode.FORGET, node, struct.pack("<Q", 1))
    assert desk.dispatch.known == 1
    fh = number(desk.ask(Opcode.OPENDIR, 1, bytes(8)))
    names: list[bytes] = []
    offset = told = 0
    while rows := desk.ask(Opcode.READDIRPLUS, 1, read(fh, offset, 1000)).body:
        assert len(rows) <= 1000
        while rows:
            node, offset, length = _row(rows)
            names.append(rows[152 : 152 + length])
            told += bool(node)
            rows = rows[152 + length + -length % 8 :]
        assert desk.dispatch.known == 1 + told
    assert names == [b".", b"..", *(b"n%02d" % count for count in range(50))]
    assert desk.dispatch.known == 51


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.LOOKUP, b"x\0"),
        (Opcode.MKDIR, protocol.MKDIR_IN.pack(0o755, 0) + b"x\0"),
        (Opcode.MKNOD, protocol.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"x\0"),
        (Opcode.SYMLINK, b"x\0target\0"),
        (Opcode.UNLINK, b"x\0"),
        (Opcode.RMDIR, b"x\0"),
        (Opcode.RENAME2, protocol.RENAME2_IN.pack(1, 0, 0) + b"x\0y\0"),
        (Opcode.CREATE, protocol.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + b"x\0"),
    ],
)
def test_no_path_leads_on_through_a_symlink(desk: Desk, opcode: Opcode, body: bytes) -> None:
    node = number(desk.ask(Opcode.SYMLINK, 1, b"link\0elsewhere\0"))
    assert desk.ask(opcode, node, body).error == errno.ENOTDIR
    body = protocol.RENAME2_IN.pack(node, 0, 0) + b"link\0y\0"
    assert desk.ask(Opcode.RENAME2, 1, body).error == errno.ENOTDIR


@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
def test_a_listing_is_no_longer_than_asked_for(desk: Desk, opcode: Opcode) -> None:
    make(desk)
    fh = number(desk.ask(Opcode.OPENDIR, 1, bytes(8)))
    lengths = {len(desk.ask(opcode, 1, read(fh, 0, size)).body) - size for size in range(600)}
    assert max(lengths) == 0


def _row(rows: bytes) -> tuple[int, int, int]:
    """Node id, offset and length of the name of the first row."""
    (node,) = struct.unpack_from("<Q", rows)
    offset, length = struct.unpack_from("<QI", rows, 136)
    return node, offset, length


@pytest.mark.parametrize(
    ("opcode", "body", "number"),
    [
        (Opcode.FLUSH, bytes(24), errno.ENOSYS),
        (Opcode.IOCTL, struct.pack("<QIIQII", 0, 0, 0x5401, 0, 0, 0), errno.ENOTTY),
        (Opcode.POLL, bytes(24), errno.ENOSYS),
        (9999, b"", errno.ENOSYS),
        (Opcode.DESTROY, b"", 0),
    ],
)
def test_what_is_not_offered_is_answered(desk: Desk, opcode: int, body: bytes, number: int) -> None:
    assert desk.ask(opcode, 1, body).error == number


@pytest.mark.expects_log("malformed request")
@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"../../etc/passwd", b"a\0b"])
def test_names_that_lead_elsewhere_are_refused(
    desk: Desk, overlay: MemoryOverlay, name: bytes
) -> None:
    assert desk.ask(Opcode.LOOKUP, 1, name + b"\0").error == errno.EINVAL
    assert desk.ask(Opcode.UNLINK, 1, name + b"\0").error == errno.EINVAL
    rename = struct.pack("<QII", 1, 0, 0) + b"ok\0" + name + b"\0"
    assert desk.ask(Opcode.RENAME2, 1, rename).error == errno.EINVAL
    assert overlay.calls == []


@pytest.mark.expects_log("the kernel named")
def test_unknown_nodes_and_handles_are_stale(desk: Desk) -> None:
    assert desk.ask(Opcode.GETATTR, 77, bytes(16)).error == errno.ESTALE
    assert desk.ask(Opcode.READ, 1, read(77)).error == errno.ESTALE


def test_the_umask_is_the_verbs_business(desk: Desk, overlay: MemoryOverlay) -> None:
    desk.ask(Opcode.MKDIR, 1, struct.pack("<II", 0o777, 0o027) + b"d\0", uid=7)
    (_, (_, mode, caller)) = next(call for call in overlay.calls if call[0] == "mkdir")
    assert (mode, caller.umask, caller.uid) == (0o777, 0o027, 7)


@pytest.mark.parametrize("born_ns", [None, 1_000_000_000_000_000_007, -1])
def test_statx_tells_of_the_birth_where_it_is_known(desk: Desk, born_ns: int | None) -> None:
    node, _ = make(desk)
    target = desk.dispatch._nodes[node].node
    target.born_ns = born_ns  # type: ignore[attr-defined]
    body = desk.ask(Opcode.STATX, node, struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF)).body
    assert len(body) == 32 + 256
    (mask,) = struct.unpack_from("<I", body, 32)
    seconds, nanoseconds = struct.unpack_from("<qI", body, 32 + 80)
    assert mask == (0x7FF if born_ns is None else 0xFFF)
    assert seconds * 10**9 + nanoseconds == (born_ns or 0)
    assert struct.unpack_from("<Q", body, 32 + 32)[0] == target.ino


@pytest.mark.parametrize("room", [0, 3, 4, 64])
def test_an_ioctl_answers_no_more_than_there_is_room_for(desk: Desk, room: int) -> None:
    node, fh = make(desk)
    request = struct.pack("<QIIQII", fh, 0, 0x80086601, 0, 0, room)
    body = desk.ask(Opcode.IOCTL, node, request).body
    assert body == bytes(16) + b"flag"[:room]


@pytest.mark.expects_log("malformed request")
def test_an_ioctl_whose_data_is_missing_is_refused(desk: Desk) -> None:
    request = struct.pack("<QIIQII", 0, 0, 0x40086602, 0, 4, 0)
    assert desk.ask(Opcode.IOCTL, 1, request).error == errno.EINVAL


@pytest.mark.parametrize(("flags", "told"), [(1 << 2, True), (0, False)])
def test_only_writers_that_clear_setuid_are_named(
    desk: Desk, overlay: MemoryOverlay, flags: int, told: bool
) -> None:
    node, fh = make(desk)
    desk.ask(Opcode.WRITE, node, write(fh, b"x", flags), uid=1000)
    caller = next(call for call in overlay.calls if call[0] == "write")[1][2]
    assert (caller is not None) == told


def setattr_nothing(desk: Desk, node: int, pid: int) -> None:
    assert desk.ask(Opcode.SETATTR, node, bytes(88), pid=pid).error == 0


CAPABILITY = b"security.capability\0"


@pytest.mark.parametrize(("asked", "cleared"), [(0, True), (1, True), (2, False)])
def test_a_change_of_nothing_clears_but_for_roots_write(
    desk: Desk, overlay: MemoryOverlay, asked: int, cleared: bool
) -> None:
    """The kernel's order of requests: see `killpriv`."""
    node, _ = make(desk)
    value = b"cap"
    desk.ask(Opcode.SETXATTR, node, struct.pack("<IIII", 3, 0, 0, 0) + CAPABILITY + value)
    for _ in range(asked):
        desk.ask(Opcode.GETXATTR, node, bytes(8) + CAPABILITY, pid=os.getpid())
    desk.ask(Opcode.REMOVEXATTR, node, CAPABILITY, pid=os.getpid())
    setattr_nothing(desk, node, os.getpid())
    assert any(call[0] == "setattr" for call in overlay.calls) == cleared
    setattr_nothing(desk, node, os.getpid())
    assert overlay.calls[-1][0] == "setattr", "each write is judged by itself"


def test_changed_attributes_are_told_before_the_reply(desk: Desk, overlay: MemoryOverlay) -> None:
    node, fh = make(desk)
    target = desk.dispatch._nodes[node].node
    overlay.before["write"] = lambda: overlay.attributes_changed(target)  # type: ignore[attr-defined]
    desk.request(Opcode.WRITE, node, write(fh, b"x"))
    note, reply = desk.replies()
    assert (note.unique, note.error) == (0, Notify.INVAL_INODE)
    assert struct.unpack("<Qqq", note.body) == (node, -1, 0)
    assert reply.unique


@pytest.mark.parametrize("verb", ["lookup", "create", "opendir"])
def test_what_nobody_was_told_is_taken_back(
    desk: Desk, overlay: MemoryOverlay, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    make(desk)
    desk.request(Opcode.FORGET, 2, struct.pack("<Q", 1))
    monkeypatch.setattr(desk.session, "_write", lambda fd, unique, reply: False)
    bodies: dict[str, tuple[int, bytes]] = {
        "lookup": (Opcode.LOOKUP, b"file\0"),
        "create": (Opcode.CREATE, CREATE.pack(os.O_RDWR, 0o644, 0, 0) + b"new\0"),
        "opendir": (Opcode.OPENDIR, bytes(8)),
    }
    opcode, body = bodies[verb]
    desk.request(opcode, 1, body)
    assert desk.dispatch.known == 1
    assert len(overlay.released) == (verb != "lookup")


@pytest.mark.skipif(compiled() is None, reason="no compiled lane")
def test_a_session_may_end_before_its_reader_has_begun() -> None:
    # In a process of its own: a signal that nobody has taken for himself would end it.
    code = (
        "import threading\n"
        "from overlayfs_py.wire.lane import compiled\n"
        "lane = compiled()(0, b'metacopy', b'opaque')\n"
        "lane.interrupt(threading.get_native_id())\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"alive\n", b"")
