"""What cannot be mounted is refused before anything is tried; the kernel's overlayfs is asked for
its opinion.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_py import mount_flags, preflight
from overlayfs_py.errors import UserError
from overlayfs_py.holds import Hold
from overlayfs_py.options import parse_mount_options
from overlayfs_py.registry import Registration, record_of


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("a/in", "b", "u/in", "w/in", "m"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def check(base: Path, string: str, mountpoint: str = "m") -> Hold:
    options = parse_mount_options([string.replace("@", f"{base}/")])
    return preflight.check(options, os.fsencode(base / mountpoint))


def kernel_refuses(base: Path, string: str) -> bool:
    """Whether the kernel's overlayfs refuses the same options; what it mounts is unmounted at
    once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(base / "m")
    options = (string.replace("@", f"{base}/") + ",index=on").encode()
    if libc.mount(b"overlay", target, b"overlay", 0, options) != 0:
        return True
    mount_flags.umount(target)
    return False


OVERLAPS = [
    ("lowerdir=@a:@b,upperdir=@u,workdir=@w", None),
    ("lowerdir=@a:@b", None),
    ("lowerdir=@a:@b:@a", "is the same directory as lowerdir"),
    ("lowerdir=@a:@a/in", "lies inside lowerdir"),
    ("lowerdir=@a/in:@a", "lies inside lowerdir"),
    ("lowerdir=@a:@u,upperdir=@u,workdir=@w", "is the same directory as upperdir"),
    ("lowerdir=@u/in,upperdir=@u,workdir=@w", "lies inside upperdir"),
    ("lowerdir=@w/in,upperdir=@u,workdir=@w", "lies inside workdir"),
    ("lowerdir=@a,upperdir=@a/in,workdir=@w", None),
    ("lowerdir=@a,upperdir=@u,workdir=@u", "is the same directory as upperdir"),
    ("lowerdir=@a,upperdir=@u,workdir=@u/in", "lies inside upperdir"),
    ("lowerdir=@a,upperdir=@w/in,workdir=@w", "lies inside workdir"),
]


@pytest.mark.mount
@pytest.mark.parametrize(("string", "why"), OVERLAPS, ids=[string for string, _ in OVERLAPS])
def test_overlaps_are_refused_where_the_kernel_refuses_them(
    base: Path, string: str, why: str | None
) -> None:
    assert kernel_refuses(base, string) == (why is not None)
    if why is None:
        check(base, string).close()
        return
    with pytest.raises(UserError, match=why):
        check(base, string)


def test_a_symlink_to_a_layer_is_that_layer(base: Path) -> None:
    (base / "alias").symlink_to(base / "a")
    with pytest.raises(UserError, match="same directory"):
        check(base, "lowerdir=@a:@alias")


MISSING = [
    ("lowerdir=@nowhere", "m", "lowerdir .*/nowhere does not exist"),
    ("lowerdir=@a,upperdir=@nowhere,workdir=@w", "m", "upperdir .*/nowhere does not exist"),
    ("lowerdir=@a,upperdir=@u,workdir=@nowhere", "m", "workdir .*/nowhere does not exist"),
    ("lowerdir=@a::@nowhere", "m", "lowerdir .*/nowhere does not exist"),
    ("lowerdir=@file", "m", "lowerdir .*/file is not a directory"),
    ("lowerdir=@a", "nowhere", "mountpoint .*/nowhere does not exist"),
    ("lowerdir=@a", "file", "mountpoint .*/file is not a directory"),
]


@pytest.mark.mount
@pytest.mark.parametrize(("string", "mountpoint", "why"), MISSING)
def test_what_is_missing_is_named(base: Path, string: str, mountpoint: str, why: str) -> None:
    (base / "file").touch()
    with pytest.raises(UserError, match=why):
        check(base, string, mountpoint)


@pytest.fixture
def tmpfs(base: Path) -> Iterator[Path]:
    place = base / "other"
    place.mkdir()
    mount_flags.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0)
    (place / "d").mkdir()
    try:
        yield place
    finally:
        mount_flags.umount(os.fsencode(place))


@pytest.mark.mount
def test_work_on_another_filesystem(base: Path, tmpfs: Path) -> None:
    with pytest.raises(UserError, match="on another filesystem than upperdir"):
        check(base, "lowerdir=@a,upperdir=@u,workdir=@other/d")


@pytest.mark.mount
def test_work_under_another_mount_of_the_same_filesystem(base: Path) -> None:
    (base / "bound").mkdir()
    bound = os.fsencode(base / "bound")
    mount_flags.mount(os.fsencode(base / "w"), bound, None, mount_flags.MS_BIND)
    try:
        with pytest.raises(UserError, match="under another mount than upperdir"):
            check(base, "lowerdir=@a,upperdir=@u,workdir=@bound")
    finally:
        mount_flags.umount(bound)


@pytest.mark.mount
def test_upper_on_a_read_only_filesystem(base: Path, tmpfs: Path) -> None:
    (tmpfs / "w").mkdir()
    flags = mount_flags.MS_REMOUNT | mount_flags.MS_RDONLY
    mount_flags.mount(None, os.fsencode(tmpfs), None, flags)
    with pytest.raises(UserError, match="read-only filesystem"):
        check(base, "lowerdir=@a,upperdir=@other/d,workdir=@other/w")


@pytest.mark.mount
@pytest.mark.parametrize("held", ["u", "w"])
def test_what_the_kernels_overlayfs_holds_is_refused(base: Path, held: str) -> None:
    target = os.fsencode(base / "m")
    options = f"lowerdir={base}/a,upperdir={base}/u,workdir={base}/w"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, target], check=True)
    (base / "m2").mkdir()
    (base / "x").mkdir()
    try:
        string = (
            "lowerdir=@b,upperdir=@u,workdir=@x"
            if held == "u"
            else "lowerdir=@b,upperdir=@x,workdir=@w"
        )
        with pytest.raises(UserError, match=f"held by the kernel's overlay mount on {base}/m"):
            check(base, string, "m2")
        with pytest.raises(UserError, match="lies in the upper or work directory of the mount on"):
            check(base, "lowerdir=@b,upperdir=@u/in,workdir=@x", "m2")
        with pytest.raises(UserError, match="lies in the upper or work directory"):
            check(base, "index=on,lowerdir=@u/in,upperdir=@x,workdir=@b", "m2")
    finally:
        mount_flags.umount(target)


@pytest.mark.mount
def test_a_held_upper_names_mount_and_process(base: Path) -> None:
    string = "lowerdir=@a,upperdir=@u,workdir=@w"
    hold = check(base, string)
    options = parse_mount_options([string.replace("@", f"{base}/")])
    registration = Registration(record_of(options, os.fsencode(base / "m")))
    (base / "m2").mkdir()
    try:
        with pytest.raises(UserError) as caught:
            check(base, "lowerdir=@b,upperdir=@u,workdir=@b/../a", "m2")
        assert f"held by the mount on {base}/m (process {os.getpid()})" in str(caught.value)
    finally:
        registration.close()
        hold.close()
    check(base, "lowerdir=@b,upperdir=@u,workdir=@w", "m2").close()


@pytest.mark.mount
def test_a_foreign_lock_names_its_process_after_a_moment(base: Path) -> None:
    hold = Hold()
    hold.take("upperdir", os.fsencode(base / "u"))
    began = time.monotonic()
    try:
        with pytest.raises(UserError, match=rf"is locked by process {os.getpid()}"):
            check(base, "lowerdir=@a,upperdir=@u,workdir=@w")
    finally:
        hold.close()
    assert 0.5 < time.monotonic() - began < 5


@pytest.mark.mount
def test_selinux_context_without_selinux(base: Path) -> None:
    with open("/proc/filesystems") as file:
        if "selinuxfs" in file.read():
            pytest.skip("this kernel runs SELinux, so the option is honoured")
    with pytest.raises(UserError, match="context cannot be honoured: this kernel runs without"):
        check(base, 'lowerdir=@a,context="u:r:t:s0:c1,c2"')


@pytest.mark.mount
def test_a_lower_in_a_live_upper_is_noted_as_the_kernel_does(base: Path) -> None:
    options = parse_mount_options([f"lowerdir={base}/a,upperdir={base}/u,workdir={base}/w"])
    registration = Registration(record_of(options, os.fsencode(base / "m")))
    (base / "m2").mkdir()
    try:
        other = parse_mount_options([f"lowerdir={base}/b:{base}/u/in"])
        preflight.check(other, os.fsencode(base / "m2")).close()
        assert len(other.notes) == 1
        assert f"the mount on {base}/m (process {os.getpid()})" in other.notes[0]
        with pytest.raises(UserError, match="lies in the upper or work directory"):
            check(base, "lowerdir=@b,upperdir=@u/in,workdir=@a", "m2")
    finally:
        registration.close()
