"""From options to a union, and the ends of a mount."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_py import mount_flags, mountinfo
from overlayfs_py.errors import UserError
from overlayfs_py.mount import build, config
from overlayfs_py.options import MountOptions, parse_mount_options
from overlayfs_py.overlay.config import IdRange
from overlayfs_py.overlay.values import Caller

REPOSITORY = Path(__file__).parents[2]
ROOT = Caller(0, 0)


def options(base: Path, *more: str) -> MountOptions:
    words = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    return parse_mount_options([",".join([words, *more])])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "file").write_bytes(b"lower")
    return tmp_path


def test_the_union_works_without_a_mount(base: Path) -> None:
    overlay = build(options(base))
    entry = overlay.lookup(overlay.root, b"file")
    assert entry is not None
    assert entry.attributes.size == 5
    overlay.mkdir(overlay.root, b"made", 0o755, ROOT)
    overlay.close()
    assert (base / "upper" / "made").is_dir()


def test_options_become_the_unions_configuration() -> None:
    parsed = parse_mount_options(
        ["lowerdir=/l,metacopy=on,redirect_dir=on,xino=off,uidmapping=0:100000:65536,timeout=5"]
    )
    made = config(parsed)
    assert (made.metacopy, made.redirect_dir, made.xino) == (True, "on", "off")
    assert made.uid_map == (IdRange(0, 100000, 65536),)
    # Who limits the timeouts expects changes behind our back.
    assert made.caching is False
    assert config(parse_mount_options(["lowerdir=/l"])).caching is True


@pytest.mark.parametrize("missing", ["lower", "upper", "work"])
def test_a_missing_layer_is_named_and_no_descriptor_is_left(base: Path, missing: str) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    (base / missing).rename(base / "elsewhere")
    with pytest.raises(UserError, match=str(base / missing)):
        build(options(base))
    assert sorted(os.listdir("/proc/self/fd")) == before


def serve(base: Path, *more: str, mountpoint: str = "merged") -> subprocess.Popen[str]:
    words = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    command = [sys.executable, "-m", "tests.mounted.serve", ",".join([words, *more])]
    return subprocess.Popen(
        [*command, str(base / mountpoint)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def unmounted(base: Path) -> Iterator[None]:
    yield
    for name in ("merged", "lower"):
        if mountinfo.top(os.fsencode(base / name)) is not None:
            mount_flags.umount(os.fsencode(base / name), mount_flags.MNT_DETACH)


@pytest.mark.mount
@pytest.mark.usefixtures("unmounted")
def test_a_mount_may_cover_its_own_layer(base: Path) -> None:
    with serve(base, mountpoint="lower") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "live\n"
        assert (base / "lower" / "file").read_bytes() == b"lower"
        (base / "lower" / "file").write_bytes(b"written")
        assert (base / "upper" / "file").read_bytes() == b"written"
        mount_flags.umount(os.fsencode(base / "lower"))
        assert process.wait(10) == 0
    assert (base / "lower" / "file").read_bytes() == b"lower"


@pytest.mark.mount
@pytest.mark.usefixtures("unmounted")
def test_changes_behind_the_mount_show_after_the_timeout(base: Path) -> None:
    with serve(base, "timeout=0") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "live\n"
        merged = base / "merged"
        assert not (merged / "late").exists()
        (base / "upper" / "late").write_bytes(b"1")
        assert (merged / "late").read_bytes() == b"1"
        (base / "upper" / "late").write_bytes(b"two")
        assert (merged / "late").read_bytes() == b"two"
        mount_flags.umount(os.fsencode(merged))
        assert process.wait(10) == 0


@pytest.mark.mount
@pytest.mark.usefixtures("unmounted")
def test_names_are_remembered_without_a_limit_otherwise(base: Path) -> None:
    with serve(base) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "live\n"
        merged = base / "merged"
        assert not (merged / "late").exists()
        (base / "upper" / "late").write_bytes(b"1")
        assert not (merged / "late").exists()
        mount_flags.umount(os.fsencode(merged))
        assert process.wait(10) == 0


@pytest.mark.mount
def test_nothing_is_left_where_the_mount_fails(base: Path) -> None:
    (base / "merged").rmdir()
    (base / "merged").touch()
    with serve(base) as process:
        said = process.communicate(timeout=20)[1]
    assert process.returncode != 0
    assert "not a directory" in said
    assert mountinfo.top(os.fsencode(base / "merged")) is None
