"""How a daemon ends that never became a mount: by a bug, or because its caller is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_py import client, holds, mount, mountinfo, registry
from overlayfs_py.errors import UserError
from overlayfs_py.options import MountOptions, parse_mount_options
from tests.command.command import COMMAND, ROOT

pytestmark = pytest.mark.mount


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("a", "u", "w", "m"):
        (tmp_path / name).mkdir()
    return tmp_path


def options(base: Path) -> MountOptions:
    return parse_mount_options([f"lowerdir={base}/a,upperdir={base}/u,workdir={base}/w"])


def eventually(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.001)


def is_released(base: Path) -> bool:
    hold = holds.Hold()
    try:
        hold.take("upperdir", os.fsencode(base / "u"))
        return True
    finally:
        hold.close()


def test_a_bug_leaves_a_traceback_in_the_log_and_one_line_here(
    base: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        os.write(2, b"fuse: the library\nsays why\n")
        raise RuntimeError("boom")

    monkeypatch.setattr(mount.Mount, "serve_by_device", broken)
    with pytest.raises(UserError) as caught:
        client.start(options(base), os.fsencode(base / "m"))
    assert str(caught.value) == f"fuse: the library; says why (see {runtime}/log)"
    log = (runtime / "log").read_text()
    assert "ended by a bug" in log
    assert "Traceback" in log
    assert "RuntimeError: boom" in log
    assert registry.live() == []
    assert is_released(base)


def test_a_daemon_that_is_killed_is_reported(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mount.Mount, "serve_by_device", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(UserError, match="was killed by signal 9 before the mount was live"):
        client.start(options(base), os.fsencode(base / "m"))
    assert registry.live() == []
    assert is_released(base)


def test_a_caller_that_is_killed_leaves_no_mount(base: Path, runtime: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "-o", "lowerdir=a,upperdir=u,workdir=w", "m"],
        cwd=base,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        # Its record comes before the mount.
        eventually(lambda: registry.live() != [])
    finally:
        process.kill()
        process.wait()
    eventually(lambda: registry.live() == [])
    assert "is gone: unmounting" in (runtime / "log").read_text()
    assert mountinfo.top(os.fsencode(base / "m")) is None
    assert is_released(base)


def test_a_connection_that_is_cut_ends_the_mount_quietly(base: Path, runtime: Path) -> None:
    client.start(options(base), os.fsencode(base / "m"))
    control = base / "control"
    control.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "none", control], check=True)
    try:
        number = os.minor((base / "m").stat().st_dev)
        (control / f"{number}/abort").write_text("1")
    finally:
        subprocess.run(["umount", control], check=True)
    eventually(lambda: registry.live() == [])
    assert "ERROR" not in (runtime / "log").read_text()
    subprocess.run(["umount", "-l", base / "m"], check=False, stderr=subprocess.DEVNULL)
