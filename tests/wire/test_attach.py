"""Mounts as the kernel is asked for them, and the accounts that it keeps with us."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_py import mount_flags, mountinfo
from overlayfs_py.errors import UserError
from overlayfs_py.wire import attach
from overlayfs_py.wire.attach import Attached, Wishes
from tests.mounted.users import as_user

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.mount


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[bytes]:
    path = tmp_path / "mount point"
    path.mkdir()
    yield os.fsencode(path)
    while mountinfo.top(os.fsencode(path)) is not None:
        mount_flags.umount(os.fsencode(path), mount_flags.MNT_DETACH)


def entry_of(attached: Attached) -> mountinfo.MountEntry:
    """The line of the mount table; the daemon's end is closed, so nobody waits for an answer."""
    os.close(attached.fd)
    entry = mountinfo.top(attached.mountpoint)
    assert entry is not None
    assert entry.device == attached.device
    return entry


@pytest.mark.parametrize("fsname", ["overlayfs-py", "a,b c", "ünïcode", "back\\slash#", "x" * 200])
def test_any_name_is_shown_as_it_is(mountpoint: bytes, fsname: str) -> None:
    entry = entry_of(attach.attach(mountpoint, Wishes(fsname, "sub-type")))
    assert os.fsdecode(entry.source).replace("\\043", "#") == fsname
    assert entry.fstype == b"fuse.sub-type"


def test_flags_reach_the_kernel(mountpoint: bytes) -> None:
    wishes = Wishes("x", "", ("nosuid", "nodev", "noexec", "noatime"), read_only=True)
    entry = entry_of(attach.attach(mountpoint, wishes))
    assert entry.fstype == b"fuse"
    assert {b"ro", b"nosuid", b"nodev", b"noexec", b"noatime"} <= set(entry.options.split(b","))
    assert {b"default_permissions", b"allow_other"} <= set(entry.super_options.split(b","))


def test_root_keeps_suid_and_dev_and_may_keep_others_out(mountpoint: bytes) -> None:
    wishes = Wishes("x", "y", allow_other=False, default_permissions=False)
    entry = entry_of(attach.attach(mountpoint, wishes))
    words = set((entry.options + b"," + entry.super_options).split(b","))
    assert not words & {b"nosuid", b"nodev", b"allow_other", b"default_permissions"}


def test_a_mountpoint_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a directory"):
        attach.attach(os.fsencode(tmp_path / "file"), Wishes("x", "y"))
    with pytest.raises(UserError, match="No such file"):
        attach.attach(os.fsencode(tmp_path / "missing"), Wishes("x", "y"))


def test_a_mountpoint_whose_daemon_is_gone(mountpoint: bytes) -> None:
    entry_of(attach.attach(mountpoint, Wishes("x", "y")))
    with pytest.raises(UserError, match="umount"):
        attach.attach(mountpoint, Wishes("x", "y"))


def test_no_device(mountpoint: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "DEVICE", "/dev/no-such-device")
    with pytest.raises(UserError, match="modprobe fuse"):
        attach.attach(mountpoint, Wishes("x", "y"))


def test_a_user_without_privilege_mounts_through_fusermount3(tmp_path: Path) -> None:
    user = pwd.getpwnam("nobody")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, user.pw_uid, user.pw_uid)
    for directory in (home, *home.parents):
        if directory.stat().st_mode & 0o111 != 0o111:
            directory.chmod(directory.stat().st_mode | 0o111)
    mode = stat.S_IMODE(os.stat(attach.DEVICE).st_mode)
    os.chmod(attach.DEVICE, 0o666)

    def mount() -> tuple[bool, int]:
        made = attach.attach(os.fsencode(home), Wishes("a,b", "sub", ("nosuid",)))
        return made.masks_here, os.fstat(made.fd).st_rdev

    try:
        assert as_user(user.pw_uid, mount) == (False, os.makedev(10, 229))
        entry = mountinfo.top(os.fsencode(home))
        assert entry is not None
        assert (entry.source, entry.fstype) == (b"a,b", b"fuse.sub")
        assert f"user_id={user.pw_uid}".encode() in entry.super_options.split(b",")
    finally:
        os.chmod(attach.DEVICE, mode)
        if mountinfo.top(os.fsencode(home)) is not None:
            mount_flags.umount(os.fsencode(home), mount_flags.MNT_DETACH)


def test_the_kernel_gives_back_every_lookup_it_was_told_of(mountpoint: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.wire.forgetting", mountpoint],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    before, after = map(int, done.stdout.split())
    assert before > 20
    assert after == 1
    assert done.stderr == ""
