"""name_to_handle_at(2) and open_by_handle_at(2), as servers of files and watchers use them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_py import syscalls
from tests.mounted.subject import SUBJECTS, Device, Kernel, Subject
from tests.mounted.users import errno_of

_NAMES = ("file", "directory", "directory/inner", "symlink", "hard", "lower", "lower/deep/deeper")


def _prepare(subject: Subject) -> None:
    for home in (subject.upper, subject.lower):
        (home / "directory").mkdir()
        (home / "directory/inner").write_bytes(b"inner")
    (subject.upper / "file").write_bytes(b"upper")
    (subject.lower / "file").write_bytes(b"lower")
    (subject.lower / "low").write_bytes(b"low")
    (subject.lower / "symlink").symlink_to("file")
    (subject.lower / "hard").write_bytes(b"hard")
    os.link(subject.lower / "hard", subject.lower / "link")
    (subject.lower / "lower/deep/deeper").mkdir(parents=True)
    (subject.lower / "lower/deep/deeper/file").write_bytes(b"deep")


def handle_of(path: Path) -> tuple[int, bytes]:
    found = syscalls.name_to_handle(syscalls.AT_FDCWD, os.fsencode(path))
    assert found is not None
    return found


class Handles:
    """Opens handles of one mount."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def open(self, handle: tuple[int, bytes], flags: int = os.O_RDONLY) -> int:
        mount = os.open(self.subject.mountpoint, os.O_RDONLY)
        try:
            return syscalls.open_by_handle(mount, *handle, flags)
        finally:
            os.close(mount)

    def errno(self, handle: tuple[int, bytes]) -> str:
        return errno_of(lambda: os.close(self.open(handle, os.O_PATH)))

    def ino(self, handle: tuple[int, bytes]) -> int:
        fd = self.open(handle, os.O_PATH)
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    def read(self, handle: tuple[int, bytes]) -> bytes:
        with open(self.open(handle), "rb") as file:
            return file.read()


@pytest.fixture(params=["kernel", "device", "plain"])
def handles(
    request: pytest.FixtureRequest,
    mounted: Callable[..., Subject],
    monkeypatch: pytest.MonkeyPatch,
) -> Handles:
    kind = SUBJECTS[request.param]
    base = Kernel if kind is Kernel else Device
    option = ",nfs_export=on" if kind is Kernel else ",file_handles=on"
    options = base.options
    monkeypatch.setattr(base, "options", lambda self: options(self) + option)
    return Handles(mounted(kind, _prepare))


@pytest.mark.parametrize("name", _NAMES)
def test_a_handle_is_good_when_everything_was_forgotten(handles: Handles, name: str) -> None:
    path = handles.subject.mountpoint / name
    handle, ino = handle_of(path), os.lstat(path).st_ino
    handles.subject.forget()
    assert handles.ino(handle) == ino
    handles.subject.forget()
    assert handles.ino(handle) == os.lstat(path).st_ino


def test_it_follows_the_object_through_copy_up_and_rename(handles: Handles) -> None:
    home = handles.subject.mountpoint
    handle = handle_of(home / "low")
    (home / "low").write_bytes(b"changed")
    os.rename(home / "low", home / "directory/moved")
    os.rename(home / "directory", home / "elsewhere")
    handles.subject.forget()
    assert handles.read(handle) == b"changed"
    assert handles.ino(handle) == os.stat(home / "elsewhere/moved").st_ino


def test_a_directory_found_by_its_handle_has_its_place_in_the_tree(handles: Handles) -> None:
    home = handles.subject.mountpoint
    handle = handle_of(home / "lower/deep/deeper")
    handles.subject.forget()
    fd = handles.open(handle, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(fd) == ["file"]
        assert os.readlink(f"/proc/self/fd/{fd}") == str(home / "lower/deep/deeper")
        up = os.open("../..", os.O_RDONLY, dir_fd=fd)
        assert os.fstat(up).st_ino == os.stat(home / "lower").st_ino
        os.close(up)
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["file", "low", "directory", "new", "newdir"])
def test_a_handle_of_what_was_removed_is_stale(handles: Handles, name: str) -> None:
    path = handles.subject.mountpoint / name
    if name == "new":
        path.write_bytes(b"new")
    elif name == "newdir":
        path.mkdir()
    handle = handle_of(path)
    for forgets in (False, True):
        if forgets:
            handles.subject.forget()
        assert handles.errno(handle) == ""
    if path.is_dir():
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
    else:
        path.unlink()
    handles.subject.forget()
    assert handles.errno(handle) == "ESTALE"
    path.write_bytes(b"another, perhaps with the same number")
    assert handles.errno(handle) == "ESTALE"


def test_a_handle_of_the_mount_before_is_stale(handles: Handles) -> None:
    """The kernel's overlayfs keeps its handles over a remount."""
    home = handles.subject.mountpoint
    found = {name: handle_of(home / name) for name in _NAMES}
    handles.subject.remount()
    for name in _NAMES:
        os.lstat(home / name)
    for name, handle in found.items():
        expected = "" if isinstance(handles.subject, Kernel) else "ESTALE"
        assert handles.errno(handle) == expected, name


def test_without_the_option_a_handle_is_good_while_the_inode_is_known(
    mounted: Callable[..., Subject],
) -> None:
    handles = Handles(mounted(Device, _prepare))
    path = handles.subject.mountpoint / "file"
    handle = handle_of(path)
    assert handles.read(handle) == b"upper"
    deadline = time.monotonic() + 10
    handles.subject.forget()
    # The kernel holds the inode until the release of the file that was read has its answer.
    while handles.errno(handle) != "ESTALE":
        assert time.monotonic() < deadline
        time.sleep(0.05)
        handles.subject.forget()
