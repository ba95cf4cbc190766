"""What changes something waits at a closed gate; what had begun is waited for; what reads passes."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from overlayfs_py.freezing import FREEZE, THAW
from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.overlay.values import Caller
from overlayfs_py.wire.call import Call
from overlayfs_py.wire.device.protocol import IOCTL_DIR, IOCTL_IN, Opcode
from overlayfs_py.wire.dispatch import Refused
from overlayfs_py.wire.gate import CHANGING
from overlayfs_py.wire.nodes import ROOT_ID
from tests.wire.conftest import Wire
from tests.wire.device.desk import Desk
from tests.wire.double import MemoryOverlay, faults

CALLER = Caller(0, 0, 42, 0o022)
READING = {
    *("root", "attributes_changed", "lookup", "getattr", "birth_ns", "readlink", "getxattr"),
    *("listxattr", "read", "read_into", "flush", "fsync", "release", "seek", "opendir", "readdir"),
    *(
        "readdirplus",
        "plain_directory",
        "changes_plainly",
        "directories_changed",
        "links_known",
        "plain_copies",
        "nameless_upper",
        "nameless_lower",
        "nameless_in_image",
        "releasedir",
        "fsyncdir",
        "statfs",
        "statfs_fd",
        "forget",
        "sync",
    ),
    "close",
}


def test_every_verb_is_known_to_change_something_or_not_to() -> None:
    verbs = {name for name in vars(Overlay) if not name.startswith("_")} - {"open", "ioctl"}
    assert verbs == READING | CHANGING
    assert not READING & CHANGING


def test_what_changes_something_waits(wire: Wire) -> None:
    wire.dispatch.gate.close(os.getpid())
    call = wire.dispatch.mkdir(ROOT_ID, b"d", 0o777, CALLER)
    waiting = wire.ask(call)
    assert isinstance(waiting, Fault)
    assert wire.ask(wire.dispatch.lookup(ROOT_ID, b"d")).attributes is None
    assert "mkdir" not in dict(wire.overlay.calls)
    threading.Timer(0.05, wire.dispatch.gate.open).start()
    waiting.work()
    assert wire.ask(call).node_id == 100


def test_opening_waits_if_it_is_for_more_than_reading(wire: Wire) -> None:
    made = wire.ask(wire.dispatch.mknod(ROOT_ID, b"f", 0o100644, 0, CALLER))
    wire.dispatch.gate.close(os.getpid())
    for flags, waits in (
        (os.O_RDONLY, False),
        (os.O_WRONLY, True),
        (os.O_RDWR, True),
        (os.O_RDONLY | os.O_TRUNC, True),
    ):
        outcome = wire.ask(wire.dispatch.open(made.node_id, flags, CALLER))
        assert isinstance(outcome, Fault) == waits


def test_asking_for_the_flags_of_a_file_does_not_wait(wire: Wire) -> None:
    wire.dispatch.gate.close(os.getpid())
    for command, waits in ((0x5401, False), (0x80086601, False), (0x40086602, True)):
        call: Call[bytes] = Call(wire.overlay.ioctl, (wire.overlay.root, command, b""))
        try:
            outcome = wire.ask(call)
        except Refused:
            outcome = None
        assert isinstance(outcome, Fault) == waits


def test_what_has_begun_goes_on_and_is_waited_for(wire: Wire) -> None:
    wire.overlay.before["mkdir"] = faults(2)
    call = wire.dispatch.mkdir(ROOT_ID, b"d", 0o777, CALLER)
    assert isinstance(wire.ask(call), Fault)
    wire.dispatch.pin(call)
    wire.dispatch.gate.close(os.getpid())
    drained = threading.Thread(target=wire.dispatch.gate.drain)
    drained.start()
    assert isinstance(wire.ask(call), Fault)
    assert wire.ask(call).node_id == 100
    drained.join(0.05)
    assert drained.is_alive()
    wire.dispatch.unpin(call)
    drained.join(5)
    assert not drained.is_alive()


@pytest.fixture
def desk() -> Desk:
    return Desk(MemoryOverlay())


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when it is told to."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def give(desk: Desk, order: int, pid: int, uid: int = 0) -> int:
    body = IOCTL_IN.pack(0, IOCTL_DIR, order, 0, 0, 0)
    reply: Any = desk.ask(Opcode.IOCTL, ROOT_ID, body, pid=pid, uid=uid)
    error: int = reply.error
    return error


def test_the_gate_is_closed_until_who_closed_it_opens_it(
    desk: Desk, other: subprocess.Popen[bytes]
) -> None:
    assert give(desk, FREEZE, os.getpid()) == 0
    assert give(desk, FREEZE, other.pid) == errno.EBUSY
    assert give(desk, THAW, other.pid) == errno.EPERM
    assert desk.dispatch.gate.owner == os.getpid()
    assert give(desk, THAW, os.getpid()) == 0
    assert desk.dispatch.gate.owner == 0
    assert give(desk, THAW, os.getpid()) == errno.EPERM
    assert give(desk, FREEZE, other.pid) == 0


def test_a_thread_closes_the_gate_for_its_process(desk: Desk) -> None:
    errors = []
    thread = threading.Thread(
        target=lambda: errors.append(give(desk, FREEZE, threading.get_native_id()))
    )
    thread.start()
    thread.join()
    assert errors == [0]
    assert desk.dispatch.gate.owner == os.getpid()
    assert give(desk, THAW, os.getpid()) == 0


@pytest.mark.parametrize("waits", [True, False])
def test_the_end_of_who_closed_the_gate_opens_it(
    wire: Wire, other: subprocess.Popen[bytes], waits: bool
) -> None:
    wire.dispatch.gate.close(other.pid)
    call = wire.dispatch.mkdir(ROOT_ID, b"d", 0o777, CALLER)
    if waits:
        waiting = wire.ask(call)
        assert isinstance(waiting, Fault)
        threading.Timer(0.05, other.kill).start()
        waiting.work()
    else:
        other.kill()
        # Not waited for: nobody has to be.
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert wire.ask(call).node_id == 100


def test_not_for_everybody(desk: Desk) -> None:
    assert give(desk, FREEZE, os.getpid(), uid=1234) == errno.EPERM
    # Mounts that may be idmapped: the user is not told.
    assert give(desk, FREEZE, 0, uid=(1 << 32) - 1) == errno.EPERM
    assert give(desk, FREEZE, os.getpid(), uid=(1 << 32) - 1) == 0


def test_not_for_a_process_that_does_not_show(desk: Desk) -> None:
    assert give(desk, FREEZE, 0) == errno.ESRCH
    assert desk.dispatch.gate.owner == 0


def test_the_end_of_a_session_opens_the_gate(desk: Desk) -> None:
    assert give(desk, FREEZE, os.getpid()) == 0
    unique = desk.request(Opcode.MKDIR, ROOT_ID, (0o755).to_bytes(8, "little") + b"d\0")
    desk.session.stop()
    assert [reply.error for reply in desk.replies() if reply.unique == unique] == [0]
