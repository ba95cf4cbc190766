"""What changes something waits at a closed gate; what had begun is waited for; what reads passes."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

import pytest

from overlayfs_py.freezing import FREEZE
from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.overlay.values import Caller
from overlayfs_py.wire.call import Call
from overlayfs_py.wire.device.protocol import IOCTL_DIR, IOCTL_IN, RELEASE_IN, Opcode
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
    wire.dispatch.gate.close(1)
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
    wire.dispatch.gate.close(1)
    for flags, waits in (
        (os.O_RDONLY, False),
        (os.O_WRONLY, True),
        (os.O_RDWR, True),
        (os.O_RDONLY | os.O_TRUNC, True),
    ):
        outcome = wire.ask(wire.dispatch.open(made.node_id, flags, CALLER))
        assert isinstance(outcome, Fault) == waits


def test_asking_for_the_flags_of_a_file_does_not_wait(wire: Wire) -> None:
    wire.dispatch.gate.close(1)
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
    wire.dispatch.gate.close(1)
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


def opened(desk: Desk) -> int:
    reply = desk.ask(Opcode.OPENDIR, ROOT_ID, bytes(8))
    return int.from_bytes(reply.body[:8], "little")


def freeze(desk: Desk, directory: int, **caller: int) -> Any:
    body = IOCTL_IN.pack(directory, IOCTL_DIR, FREEZE, 0, 0, 0)
    return desk.ask(Opcode.IOCTL, ROOT_ID, body, **caller)


def test_the_gate_is_closed_as_long_as_the_directory_is_open(desk: Desk) -> None:
    directory, other = opened(desk), opened(desk)
    assert freeze(desk, directory).error == 0
    assert freeze(desk, other).error != 0
    assert desk.dispatch.gate.owner == directory
    desk.ask(Opcode.RELEASEDIR, ROOT_ID, RELEASE_IN.pack(other, 0, 0, 0))
    assert desk.dispatch.gate.owner == directory
    desk.ask(Opcode.RELEASEDIR, ROOT_ID, RELEASE_IN.pack(directory, 0, 0, 0))
    assert desk.dispatch.gate.owner == 0


def test_not_for_everybody(desk: Desk) -> None:
    directory = opened(desk)
    assert freeze(desk, directory, uid=1234).error == errno.EPERM
    # Mounts that may be idmapped: the user is not told.
    assert freeze(desk, directory, uid=(1 << 32) - 1, pid=0).error == errno.EPERM
    assert freeze(desk, directory, uid=(1 << 32) - 1, pid=os.getpid()).error == 0


def test_the_end_of_a_session_opens_the_gate(desk: Desk) -> None:
    assert freeze(desk, opened(desk)).error == 0
    unique = desk.request(Opcode.MKDIR, ROOT_ID, (0o755).to_bytes(8, "little") + b"d\0")
    desk.session.stop()
    assert [reply.error for reply in desk.replies() if reply.unique == unique] == [0]
