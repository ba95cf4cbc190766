"""`mount --engine=kernel`: an image served by the kernel's overlayfs, and the commands on such a mount."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from layerstore.errors import ImageInUse, StoreError
from layerstore.store import Store
from overlayfs_py import mount_api, mountinfo
from overlayfs_py.engine import choice, kernel, stacking
from overlayfs_py.options import MountOptions
from tests import scratch
from tests.command.command import refusal, run

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount EROFS"),
]


def mount(base: Path, *words: str | Path, engine: str = "kernel") -> Path:
    done = run("mount", f"--engine={engine}", *map(str, words), "app", "m", cwd=base)
    assert (done.returncode, done.stderr) == (0, "")
    return base / "m"


def kind(place: Path) -> bytes:
    entry = mountinfo.top(os.fsencode(place))
    assert entry is not None
    return entry.fstype


def ps(place: Path) -> list[dict[str, Any]]:
    mounts = json.loads(run("ps", "--json").stdout)
    return [mount for mount in mounts if mount["mountpoint"] == str(place)]


def umount(base: Path) -> None:
    done = run("umount", "m", cwd=base)
    assert (done.returncode, done.stderr) == (0, "")
    assert scratch.mounts_below(base) == []
    with Store.open() as store:
        assert store.leases.all() == []


def test_read_only(base: Path) -> None:
    place = mount(base, "--ro")
    assert kind(place) == b"overlay"
    assert (place / "file").read_bytes() == b"app"
    with pytest.raises(OSError, match="Read-only file system"):
        (place / "new").touch()
    # Nothing but the one mount is to be seen.
    assert scratch.mounts_below(base) == [str(place)]
    umount(base)


def test_a_named_upper_goes_between_the_engines(base: Path) -> None:
    place = mount(base, "--name", "mine")
    (place / "etc/hosts").chmod(0o600)  # a file without data in the upper
    (place / "new").write_text("by the kernel")
    (place / "etc").rename(place / "conf")
    umount(base)
    mount(base, "--name", "mine", engine="fuse")
    assert kind(place) == b"fuse.overlayfs-py"
    assert (place / "conf/hosts").read_bytes() == b"one"
    assert (place / "conf/hosts").stat().st_mode & 0o7777 == 0o600
    assert (place / "new").read_text() == "by the kernel"
    (place / "conf").rename(place / "settings")
    (place / "new").write_text("by the daemon")
    (place / "file").unlink()
    umount(base)
    mount(base, "--name", "mine")
    assert (place / "settings/hosts").read_bytes() == b"one"
    assert sorted(path.name for path in place.iterdir()) == ["new", "settings"]
    assert (place / "new").read_text() == "by the daemon"
    umount(base)


def test_an_upper_with_an_odd_name(base: Path) -> None:
    upper, work = base / "u,p\\:er", base / "w\\o,r:k"
    upper.mkdir()
    work.mkdir()
    place = mount(base, "--upper", upper, "--work", work)
    (place / "new").touch()
    umount(base)
    assert (upper / "new").exists()


def test_what_it_keeps_from_being_removed(base: Path) -> None:
    mount(base, "--name", "mine")
    with Store.open() as store:
        (lease,) = store.leases.all()
        assert lease.mountpoint == os.fsencode(base / "m")
        with pytest.raises(StoreError, match=f"mine is mounted by the kernel on {base}/m"):
            store.remove_upper("mine")
        with pytest.raises(ImageInUse, match="mounted by the kernel"):
            store.remove("app", force=True)
        store.collect()
    assert (base / "m/file").read_bytes() == b"app"
    # Taken away by somebody who knows nothing of leases: it is noticed all the same.
    subprocess.run(["umount", base / "m"], check=True)
    with Store.open() as store:
        store.remove_upper("mine")
        store.remove("app")


def test_of_two_mounts_of_an_image_each_keeps_its_own_upper(base: Path) -> None:
    mount(base, "--name", "mine")
    (base / "n").mkdir()
    done = run("mount", "--engine=kernel", "--name", "other", "app", "n", cwd=base)
    assert (done.returncode, done.stderr) == (0, "")
    assert run("umount", "m", cwd=base).returncode == 0
    with Store.open() as store:
        assert [lease.upper for lease in store.leases.all()] == ["other"]
        store.remove_upper("mine")
        with pytest.raises(StoreError, match=f"mounted by the kernel on {base}/n"):
            store.remove_upper("other")
        with pytest.raises(ImageInUse):
            store.remove("app")
    assert run("umount", "n", cwd=base).returncode == 0


def test_one_upper_has_one_mount(base: Path) -> None:
    mount(base, "--name", "mine")
    (base / "n").mkdir()
    for engine in ("fuse", "kernel"):
        said = refusal("mount", f"--engine={engine}", "--name", "mine", "app", "n", cwd=base)
        assert f"the kernel's overlay mount on {base}/m" in said
    umount(base)
    mount(base, "--name", "mine", engine="fuse")
    said = refusal("mount", "--engine=kernel", "--name", "mine", "app", "n", cwd=base)
    assert f"is held by the mount on {base}/m" in said
    umount(base)


def test_ps_diff_which_and_umount_know_it(base: Path) -> None:
    place = mount(base, "--name", "mine")
    (place / "etc/hosts").chmod(0o600)
    (place / "new").touch()
    (entry,) = ps(place)
    assert (entry["mountpoint"], entry["state"], entry["mode"]) == (str(place), "live", "rw")
    assert (entry["engine"], entry["pid"], entry["image"]) == ("kernel", None, "app")
    rows = [line.split()[:4] for line in run("ps").stdout.splitlines()]
    assert [str(place), "live", "rw", "kernel"] in rows
    shown = run("diff", "m", cwd=base)
    assert shown.stdout.splitlines() == ["C /etc", "C /etc/hosts", "A /new"]
    (which,) = json.loads(run("which", "--json", "m/etc/hosts", cwd=base).stdout)
    assert which["from"]["layer"] == "upper"
    assert which["data"]["layer"] == "lower"
    assert "in use by an overlayfs-py mount (the kernel)" in refusal("mount", "app", "m", cwd=base)
    assert run("-o", "remount,ro", "m", cwd=base).returncode == 0
    assert ps(place)[0]["mode"] == "ro"
    with (place / "file").open():
        assert "is busy: in use by" in refusal("umount", "m", cwd=base)
    umount(base)
    assert ps(place) == []


def test_options_of_the_mount(base: Path) -> None:
    place = mount(base, "--ro", "-o", "nosuid,nodev,noatime,fsname=mine,private")
    entry = mountinfo.top(os.fsencode(place))
    assert entry is not None
    assert set(entry.options.split(b",")) == {b"ro", b"nosuid", b"nodev", b"noatime"}
    assert entry.source == b"mine"
    umount(base)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("timeout=1", "nothing like timeout="),
        ("squash_to_uid=1", "nothing like squash_to_uid="),
        ("redirect_dir=off", "contradicts the redirects of the index"),
    ],
)
def test_what_only_a_daemon_can(base: Path, option: str, reason: str) -> None:
    said = refusal("mount", "--engine=kernel", "--ro", "-o", option, "app", "m", cwd=base)
    assert reason in said
    assert "--engine=fuse" in said
    place = mount(base, "--ro", "-o", option, engine="auto")
    assert kind(place) == b"fuse.overlayfs-py"
    umount(base)


def test_auto_takes_the_kernel_where_it_can(base: Path) -> None:
    assert kind(mount(base, "--name", "mine", engine="auto")) == b"overlay"
    umount(base)
    assert "must be one of fuse, kernel, auto" in refusal(
        "mount", "--engine=x", "app", "m", cwd=base
    )


def test_what_speaks_against_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.against(MountOptions(image="app")) is None
    monkeypatch.setattr(choice, "_filesystems", lambda: {"overlay"})
    monkeypatch.setattr(choice, "_has_module", lambda name: False)
    assert choice.against(MountOptions(image="app")) == "this kernel has no erofs"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert choice.against(MountOptions(image="app")) == "only root may mount EROFS"


def test_a_kernel_that_refuses_leaves_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(recipe: stacking.Recipe, mountpoint: bytes) -> int:
        raise OSError(15, "Block device required", "erofs")

    monkeypatch.setattr(stacking, "build", refuse)
    options = MountOptions(image="app", upper_name="mine")
    assert not kernel.mount("auto", options, os.fsencode(base / "m"))
    assert "Linux 6.12 and later" in options.notes[0]
    with Store.open() as store:
        assert store.leases.all() == []
        assert not store.has_metacopies("mine")


def test_the_way_of_older_kernels(base: Path) -> None:
    """Layers by path, from a child's mount namespace; the mountpoint shows nothing of it."""
    with Store.open() as store:
        image = store.resolve("app")
        objects = store.objects_dir
    place = os.fsencode(base / "m")
    options: list[tuple[str, bytes | None]] = [("metacopy", b"on"), ("redirect_dir", b"follow")]
    recipe = stacking.Recipe(b"test", image.image_index, objects, options, [], True)
    made = stacking.build_apart(recipe, place)
    assert scratch.mounts_below(base) == []
    mount_api.place(made, place)
    os.close(made)
    assert (base / "m/file").read_bytes() == b"app"
    assert scratch.mounts_below(base) == [str(base / "m")]
    subprocess.run(["umount", base / "m"], check=True)
    broken = stacking.Recipe(b"test", b"/nonexistent", objects)
    with pytest.raises(OSError, match="No such file"):
        stacking.build_apart(broken, place)
