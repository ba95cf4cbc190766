"""Copy-up: who waits for it, what fails in it, what it leaves behind."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_py.overlay.config import Config
from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.values import Changes
from tests.overlay.unions import ROOT, node, read, run, union, write


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(where)]
    subprocess.run(command, check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def tree(where: Path) -> list[str]:
    return sorted(str(path.relative_to(where)) for path in where.rglob("*"))


def test_a_full_upper_says_so_and_nothing_is_left(tmp_path: Path, small: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "big").write_bytes(os.urandom(2 << 20))
    with union(small, ["../lower"]) as overlay:
        before = tree(small / "upper"), tree(small / "work")
        for _ in range(2):
            with pytest.raises(OSError, match="No space") as caught:
                run(overlay.open, node(overlay, "big"), os.O_RDWR, ROOT)
            assert caught.value.errno == errno.ENOSPC
            assert (tree(small / "upper"), tree(small / "work")) == before
        # A truncation needs only what stays.
        run(overlay.setattr, node(overlay, "big"), Changes(size=1000), ROOT)
        assert read(overlay, "big") == (lower / "big").read_bytes()[:1000]


def test_two_verbs_wait_for_one_copy(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower" / "f").write_bytes(b"x" * (1 << 20))
    with union(tmp_path, ["lower"]) as overlay:
        target = node(overlay, "f")
        works = []
        for _ in range(2):
            with pytest.raises(Fault) as caught:
                overlay.open(target, os.O_RDWR, ROOT)
            works.append(caught.value.work)
        assert works[0] is works[1]
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(os.listdir(tmp_path / "work" / "work")) == 1
        overlay.release(overlay.open(target, os.O_RDWR, ROOT))
        overlay.release(overlay.open(target, os.O_RDWR, ROOT))
        assert os.listdir(tmp_path / "work" / "work") == []


def test_a_copy_that_nobody_wants_any_more_goes(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower" / "f").write_bytes(b"x" * (1 << 20))
    with union(tmp_path, ["lower"]) as overlay:
        target = node(overlay, "f")
        with pytest.raises(Fault) as caught:
            overlay.open(target, os.O_RDWR, ROOT)
        caught.value.work()
        overlay.unlink(overlay.root, b"f", ROOT)
        overlay.forget(target)
        assert os.listdir(tmp_path / "work" / "work") == []


def test_a_descriptor_from_before_sees_what_is_written_after(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower" / "f").write_bytes(b"before")
    with union(tmp_path, ["lower"]) as overlay:
        early = run(overlay.open, node(overlay, "f"), os.O_RDONLY, ROOT)
        assert run(overlay.read, early, 0, 100) == b"before"
        write(overlay, "f", b"AFTER!")
        assert run(overlay.read, early, 0, 100) == b"AFTER!"
        run(overlay.release, early)


def test_an_unlinked_lower_file_can_still_be_changed(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower" / "f").write_bytes(b"content")
    with union(tmp_path, ["lower"]) as overlay:
        target = node(overlay, "f")
        handle = run(overlay.open, target, os.O_RDONLY, ROOT)
        run(overlay.unlink, overlay.root, b"f", ROOT)
        after = run(overlay.setattr, target, Changes(mode=0o600, uid=5), ROOT)
        assert (after.nlink, after.mode & 0o7777, after.uid) == (0, 0o600, 5)
        assert run(overlay.read, handle, 0, 100) == b"content"
        run(overlay.release, handle)
        assert run(overlay.lookup, overlay.root, b"f") is None
        assert os.listdir(tmp_path / "upper") == ["f"]
        assert os.listdir(tmp_path / "work" / "work") == []


def test_holes_stay_holes(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    with open(tmp_path / "lower" / "f", "wb") as file:
        file.truncate(5 << 30)
        file.seek(4 << 30)
        file.write(b"island")
    with union(tmp_path, ["lower"]) as overlay:
        write(overlay, "f", b"!", 0)
        status = (tmp_path / "upper" / "f").stat()
        assert status.st_size == 5 << 30
        assert status.st_blocks * 512 < 1 << 20
        with open(tmp_path / "upper" / "f", "rb") as file:
            file.seek(4 << 30)
            assert file.read(7) == b"island\0"


def test_a_metacopy_keeps_capabilities_and_setuid(tmp_path: Path) -> None:
    """Regression: setting the size, and bringing the data later, took security.capability away."""
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    (tmp_path / "lower").mkdir()
    lower = tmp_path / "lower" / "f"
    lower.write_bytes(b"program")
    os.chmod(lower, 0o4755)
    os.setxattr(lower, "security.capability", capability)
    with union(tmp_path, ["lower"], config=Config(metacopy=True)) as overlay:
        run(overlay.setattr, node(overlay, "f"), Changes(atime_ns=1, mtime_ns=2), ROOT)
        assert overlay.getxattr(node(overlay, "f"), b"security.capability") == capability
        run(overlay.release, run(overlay.open, node(overlay, "f"), os.O_RDWR, ROOT))
        assert "trusted.overlay.metacopy" not in os.listxattr(tmp_path / "upper" / "f")
        assert overlay.getxattr(node(overlay, "f"), b"security.capability") == capability
        after = run(overlay.getattr, node(overlay, "f"))
        assert (after.mode & 0o7777, after.mtime_ns) == (0o4755, 2)
        assert read(overlay, "f") == b"program"
