"""Records of live mounts: found while their process lives, gone with it, whatever way it went."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayfs_py import registry
from overlayfs_py.registry import Record, Registration


def record(mountpoint: bytes = b"/m", **more: object) -> Record:
    made = Record(mountpoint=mountpoint, pid=os.getpid(), started=time.time(), namespace="mnt:[1]")
    for name, value in more.items():
        setattr(made, name, value)
    return made


@given(st.binary(min_size=1), st.lists(st.binary()), st.none() | st.binary())
def test_a_record_comes_back(mountpoint: bytes, lowers: list[bytes], upper: bytes | None) -> None:
    made = record(mountpoint, lowerdirs=lowers, upperdir=upper)
    assert Record.decode(made.encode()) == made


def test_live_until_closed() -> None:
    registration = Registration(record())
    assert [found.mountpoint for found in registry.live()] == [b"/m"]
    registration.update(device="0:7")
    assert registry.find(b"/m", "0:7") is not None
    assert registry.find(b"/m", "0:8") is None
    registration.close()
    assert registry.live() == []


def test_a_killed_process_leaves_nothing(runtime: Path) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        kept = Registration(record())
        os.write(writing, b"x")
        signal.pause()
        kept.close()
        os._exit(0)
    os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    assert len(registry.live()) == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert registry.live() == []
    assert list(runtime.glob("*.json")) == []


def test_damaged_records_are_passed_over(runtime: Path) -> None:
    registration = Registration(record())
    (path,) = runtime.glob("*.json")
    path.write_text('{"mountpoint": 7}')
    assert registry.live() == []
    registration.close()


def test_a_record_is_never_missed_while_it_is_updated() -> None:
    registration = Registration(record())
    ending = threading.Event()

    def update() -> None:
        while not ending.is_set():
            registration.update(device="0:7")

    writer = threading.Thread(target=update)
    writer.start()
    try:
        counts = {len(registry.live()) for _ in range(300)}
    finally:
        ending.set()
        writer.join()
        registration.close()
    assert counts == {1}


def test_a_runtime_directory_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "link"
    place.symlink_to(tmp_path)
    monkeypatch.setenv(registry.ENVIRONMENT, str(place))
    with pytest.raises(PermissionError):
        Registration(record())
