"""Requests to verbs: ids, lookup counts, handles, errors and restarts, without a mount."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayfs_py.errors import OverlayError
from overlayfs_py.overlay.faults import RESTARTS_MAX, Fault
from overlayfs_py.overlay.values import Caller, Changes
from overlayfs_py.wire.dispatch import ABSENT, Refused
from overlayfs_py.wire.driver import Driver
from overlayfs_py.wire.nodes import ROOT_ID, Counter, InodeNumbers, NodeTable, Record
from tests.wire.conftest import Wire
from tests.wire.double import MemoryNode, faults

CALLER = Caller(1000, 1000, 42, 0o022)


def test_absent_name_is_an_answer_that_may_be_remembered(wire: Wire) -> None:
    assert wire.ask(wire.dispatch.lookup(ROOT_ID, b"nothing")) == ABSENT


def test_entry_carries_node_id_and_attributes(wire: Wire) -> None:
    made = wire.ask(wire.dispatch.mkdir(ROOT_ID, b"d", 0o777, CALLER))
    assert made.node_id == 100
    assert stat.S_IMODE(made.attributes.mode) == 0o755
    found = wire.ask(wire.dispatch.lookup(ROOT_ID, b"d"))
    assert (found.node_id, found.generation) == (100, 0)


@pytest.mark.expects_log("node 100, which is not known")
def test_forget_takes_back_exactly_what_was_told(wire: Wire) -> None:
    wire.ask(wire.dispatch.mkdir(ROOT_ID, b"d", 0o777, CALLER))
    wire.ask(wire.dispatch.lookup(ROOT_ID, b"d"))
    wire.dispatch.forget([(100, 1)])
    assert wire.overlay.forgotten == []
    wire.dispatch.forget([(100, 1)])
    assert [node.ino for node in wire.overlay.forgotten] == [100]
    with pytest.raises(Refused) as caught:
        wire.dispatch.begin(wire.dispatch.getattr, 100)
    assert caught.value.errno == errno.ESTALE


@pytest.mark.expects_log("forget of node")
def test_forgetting_too_much_is_an_error_in_the_log_and_nothing_else(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.ask(wire.dispatch.mkdir(ROOT_ID, b"d", 0o777, CALLER))
    wire.dispatch.forget([(100, 2), (100, 1), (ROOT_ID, 5)])
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert wire.ask(wire.dispatch.getattr(ROOT_ID)).ino == 77


def test_links_share_a_node(wire: Wire) -> None:
    made = wire.ask(wire.dispatch.mknod(ROOT_ID, b"a", stat.S_IFREG | 0o600, 0, CALLER))
    linked = wire.ask(wire.dispatch.link(made.node_id, ROOT_ID, b"b", CALLER))
    assert linked.node_id == made.node_id
    assert linked.attributes.nlink == 2


def test_a_number_used_again_gets_a_new_generation_and_keeps_its_count(wire: Wire) -> None:
    wire.ask(wire.dispatch.mknod(ROOT_ID, b"a", stat.S_IFREG | 0o600, 0, CALLER))
    wire.ask(wire.dispatch.unlink(ROOT_ID, b"a", CALLER))
    wire.overlay.inos = iter([100, 101])  # type: ignore[assignment]
    again = wire.ask(wire.dispatch.mknod(ROOT_ID, b"b", stat.S_IFREG | 0o600, 0, CALLER))
    assert again.node_id == 100
    assert again.generation > 0
    assert len(wire.overlay.forgotten) == 1
    # The FORGET for the former user comes late, and must not take the number from its new one.
    wire.dispatch.forget([(100, 1)])
    assert wire.ask(wire.dispatch.getattr(100)).ino == 100
    wire.dispatch.forget([(100, 1)])
    assert len(wire.overlay.forgotten) == 2


def test_inode_one_of_a_layer_is_not_taken_for_the_root(wire: Wire) -> None:
    wire.overlay.inos = iter([1])  # type: ignore[assignment]
    assert wire.ask(wire.dispatch.mkdir(ROOT_ID, b"d", 0o777, CALLER)).node_id != ROOT_ID


class Stay:
    """In the model: one node from its first reply to the moment nobody needs it any more."""

    def __init__(self, which: int) -> None:
        self.which = which
        self.lookups = 0
        self.pins = 0


@given(st.lists(st.tuples(st.sampled_from("eefpu"), st.integers(0, 3)), max_size=60))
def test_counts_agree_with_a_model(steps: list[tuple[str, int]]) -> None:
    """Enter, forget, pin and unpin in any order: each node is dropped exactly when neither the
    kernel nor a request under way needs it. Two of the four share a number.
    """
    nodes = [MemoryNode(ino, 0) for ino in (10, 11, 11, 12)]
    dropped: list[int] = []
    expected: list[int] = []

    def drop(node: MemoryNode) -> None:
        dropped.append(next(which for which, other in enumerate(nodes) if other is node))

    table = NodeTable(MemoryNode(7, 0), InodeNumbers(), drop)  # type: ignore[arg-type]
    present: dict[int, Stay] = {}
    pinned: list[tuple[Stay, Record]] = []

    def settle(stay: Stay) -> None:
        if not stay.lookups and not stay.pins:
            for ino in [ino for ino, other in present.items() if other is stay]:
                del present[ino]
            if all(other.which != stay.which for other in present.values()):
                expected.append(stay.which)

    for step, which in steps:
        ino = nodes[which].ino
        stay = present.get(ino)
        if step == "e":
            record = table.enter(nodes[which])  # type: ignore[arg-type]
            assert record.id == ino
            if stay is None or stay.which != which:
                present[ino] = Stay(which)
                if stay is not None:
                    present[ino].lookups, stay.lookups = stay.lookups, 0
                    settle(stay)
            present[ino].lookups += 1
        elif step == "f" and stay is not None and stay.lookups:
            table.forget(ino, 1)
            stay.lookups -= 1
            settle(stay)
        elif step == "p" and stay is not None:
            table.pin(table[ino])
            stay.pins += 1
            pinned.append((stay, table[ino]))
        elif step == "u" and pinned:
            stay, record = pinned.pop(0)
            table.unpin(record)
            stay.pins -= 1
            settle(stay)
        assert dropped == expected
        assert len(table) == len(present) + 1


@given(st.lists(st.tuples(st.sampled_from("eeffs"), st.integers(0, 9)), max_size=60))
def test_a_superseded_id_stays_good_until_it_is_forgotten(steps: list[tuple[str, int]]) -> None:
    """Nodes are told under a new id after each `supersede`, and dropped when no id of theirs is known any more."""
    nodes = [MemoryNode(ino, 0) for ino in (10, 11)]
    dropped: list[int] = []
    expected: list[int] = []
    table = NodeTable(
        MemoryNode(7, 0),  # type: ignore[arg-type]
        Counter(),
        lambda node: dropped.append(node.ino),
    )
    told: dict[int, list[int]] = {}
    current: dict[int, int] = {}
    for step, choice in steps:
        ids = sorted(told)
        if step == "e":
            ino = nodes[choice % 2].ino
            record = table.enter(nodes[choice % 2])  # type: ignore[arg-type]
            assert record.id == current.setdefault(ino, record.id)
            told.setdefault(record.id, [ino, 0])[1] += 1
        elif step == "f" and ids:
            id = ids[choice % len(ids)]
            told[id][1] -= 1
            table.forget(id, 1)
            ino, lookups = told[id]
            if not lookups:
                del told[id]
                if current.get(ino) == id:
                    del current[ino]
                if all(other != ino for other, _ in told.values()):
                    expected.append(ino)
        elif step == "s" and current:
            ino = sorted(current)[choice % len(current)]
            table.supersede(table[current.pop(ino)])
        assert dropped == expected
        assert sorted(record.id for record in table) == [ROOT_ID, *sorted(told)]
        for id, (ino, _) in told.items():
            assert table.is_superseded(table[id]) == (current.get(ino) != id)
            alone = [other for other, _ in told.values()].count(ino) == 1
            assert table.is_told_twice(id) == (not alone or current.get(ino) != id)


def test_ids_of_a_counter_are_never_used_again() -> None:
    ids = Counter()
    node = MemoryNode(5, 0)
    assert [ids.id_of(node) for _ in range(3)] == [2, 3, 4]  # type: ignore[arg-type]


@pytest.mark.expects_log("dispatch: getattr: ")
@pytest.mark.parametrize(
    ("error", "number", "level"),
    [
        (OSError(errno.ENOENT, "no such file"), errno.ENOENT, logging.DEBUG),
        (OSError(errno.EIO, "bad disk"), errno.EIO, logging.WARNING),
        (OverlayError(errno.EIO, "bad redirect", logging.ERROR), errno.EIO, logging.ERROR),
        (ValueError("a bug"), errno.EIO, logging.ERROR),
        (OSError("without a number"), errno.EIO, logging.ERROR),
        (RecursionError("deep"), errno.EIO, logging.ERROR),
        (MemoryError(), errno.ENOMEM, logging.ERROR),
    ],
)
def test_an_error_becomes_an_errno_and_a_line_in_the_log(
    wire: Wire,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    number: int,
    level: int,
) -> None:
    def fail() -> None:
        raise error

    caplog.set_level(logging.DEBUG)
    wire.overlay.before["getattr"] = fail
    with pytest.raises(Refused) as caught:
        wire.ask(wire.dispatch.getattr(ROOT_ID))
    assert caught.value.errno == number
    (record,) = caplog.records
    assert record.levelno == level
    has_traceback = not isinstance(error, MemoryError) and getattr(error, "errno", None) is None
    assert bool(record.exc_info) == has_traceback


def test_what_ends_the_process_is_no_errno(wire: Wire) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    wire.overlay.before["getattr"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        wire.ask(wire.dispatch.getattr(ROOT_ID))
    assert not wire.dispatch.lock.locked()


def test_a_write_is_the_openers_where_the_writer_is_unknown(wire: Wire) -> None:
    _, file = wire.ask(wire.dispatch.create(ROOT_ID, b"a", os.O_RDWR, 0o644, CALLER))
    assert wire.ask(wire.dispatch.write(file, 0, b"one")) == 3
    other = Caller(7, 7)
    wire.ask(wire.dispatch.write(file, 3, b"two", other))
    writers = [arguments[-1] for verb, arguments in wire.overlay.calls if verb == "write"]
    assert writers == [CALLER, other]
    assert wire.ask(wire.dispatch.read(file, 0, 10)) == b"onetwo"


@pytest.mark.expects_log("file handle 1, which is not known")
def test_a_released_handle_is_gone_even_if_the_verb_fails(wire: Wire) -> None:
    _, file = wire.ask(wire.dispatch.create(ROOT_ID, b"a", os.O_RDWR, 0o644, CALLER))
    wire.overlay.before["release"] = lambda: (_ for _ in ()).throw(OSError(errno.EDQUOT, "full"))
    with pytest.raises(Refused):
        wire.ask(wire.dispatch.release(file))
    with pytest.raises(Refused):
        wire.dispatch.begin(wire.dispatch.read, file, 0, 1)


def test_a_listing_goes_out_as_far_as_it_got_when_an_entry_needs_slow_work(wire: Wire) -> None:
    for name in (b"a", b"b"):
        wire.ask(wire.dispatch.mkdir(ROOT_ID, name, 0o755, CALLER))
    directory = wire.ask(wire.dispatch.opendir(ROOT_ID))
    wire.overlay.before["lookup"] = faults(2)
    first = wire.ask(wire.dispatch.readdirplus(directory, 0, 10))
    assert [item.row.name for item in first] == [b".", b".."]
    call = wire.dispatch.readdirplus(directory, first[-1].row.offset, 10)
    assert isinstance(wire.ask(call), Fault)
    assert [item.row.name for item in wire.ask(call)] == [b"a", b"b"]


def test_a_damaged_entry_does_not_hide_those_before_it(wire: Wire) -> None:
    wire.ask(wire.dispatch.mkdir(ROOT_ID, b"a", 0o755, CALLER))
    directory = wire.ask(wire.dispatch.opendir(ROOT_ID))

    def damaged() -> None:
        raise OverlayError(errno.EIO, "damaged")

    wire.overlay.before["lookup"] = damaged
    listed = wire.ask(wire.dispatch.readdirplus(directory, 0, 10))
    assert [item.row.name for item in listed] == [b".", b".."]
    with pytest.raises(Refused):
        wire.ask(wire.dispatch.readdirplus(directory, 2, 10))


def test_the_end_of_a_mount_releases_and_forgets_everything(wire: Wire) -> None:
    wire.ask(wire.dispatch.create(ROOT_ID, b"a", os.O_RDWR, 0o644, CALLER))
    wire.ask(wire.dispatch.opendir(ROOT_ID))
    work: list[int] = []
    wire.overlay.before["release"] = faults(1, lambda: work.append(1))
    wire.dispatch.close()
    assert work == [1]
    assert len(wire.overlay.released) == 1
    assert [node.ino for node in wire.overlay.forgotten] == [100]


async def test_slow_work_is_done_off_the_trio_thread_and_the_verb_starts_again(
    wire: Wire,
) -> None:
    threads: list[threading.Thread] = []
    wire.overlay.before["getattr"] = faults(3, lambda: threads.append(threading.current_thread()))
    driver = Driver(wire.dispatch)
    assert (await driver.run(wire.dispatch.getattr, ROOT_ID)).ino == 77
    assert len(threads) == 3
    assert threading.main_thread() not in threads
    assert [verb for verb, _ in wire.overlay.calls] == ["getattr"] * 4


async def test_a_fault_may_be_the_answer_and_is_completed_as_one(wire: Wire) -> None:
    node = MemoryNode(500, stat.S_IFREG)
    entry = wire.overlay._entry(node)
    wire.overlay.before["lookup"] = faults(1, lambda: entry, answer=True)
    found = await Driver(wire.dispatch).run(wire.dispatch.lookup, ROOT_ID, b"x")
    assert found.node_id == 500
    wire.dispatch.forget([(500, 1)])
    assert wire.overlay.forgotten == [node]


@pytest.mark.expects_log("no progress after")
async def test_a_verb_that_makes_no_progress_ends_in_eio(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.overlay.before["getattr"] = faults(10**6)
    with pytest.raises(Refused) as caught:
        await Driver(wire.dispatch).run(wire.dispatch.getattr, ROOT_ID)
    assert caught.value.errno == errno.EIO
    assert len(wire.overlay.calls) == RESTARTS_MAX + 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_an_error_of_slow_work_is_the_verbs(wire: Wire) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    wire.overlay.before["setattr"] = faults(1, full)
    with pytest.raises(Refused) as caught:
        await Driver(wire.dispatch).run(wire.dispatch.setattr, ROOT_ID, Changes(), CALLER)
    assert caught.value.errno == errno.ENOSPC
    assert len(wire.overlay.calls) == 1


async def test_a_node_outlives_forget_while_slow_work_needs_it(wire: Wire) -> None:
    made = wire.ask(wire.dispatch.mkdir(ROOT_ID, b"d", 0o755, CALLER))
    dropped_early: list[bool] = []

    def work() -> None:
        wire.dispatch.forget([(made.node_id, 1)])
        dropped_early.append(bool(wire.overlay.forgotten))

    wire.overlay.before["getattr"] = faults(1, work)
    await Driver(wire.dispatch).run(wire.dispatch.getattr, made.node_id)
    assert dropped_early == [False]
    assert [node.ino for node in wire.overlay.forgotten] == [made.node_id]
