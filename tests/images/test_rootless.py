"""What a user without privilege can do: rootless podman on us, images mounted through fusermount3."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.images.conftest import CONTAINER, OVERLAYFS, archive
from tests.images.rootless import UID, run_as_user

pytestmark = pytest.mark.slow

PODMAN = (
    "podman --log-level=error --storage-driver=overlay"
    f" --storage-opt=overlay.mount_program={OVERLAYFS}"
    " --runtime=runc --cgroup-manager=cgroupfs --events-backend=file"
)
LIMITS = " ".join(CONTAINER)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory that every user reaches."""
    for directory in (tmp_path, *list(tmp_path.parents)[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path


def image(place: Path, name: str) -> Path:
    """One of our images where the user can read it."""
    copy = place / f"{name}.tar"
    shutil.copyfile(archive(name), copy)
    return copy


def test_rootless_podman_builds_and_runs(place: Path) -> None:
    shown = run_as_user(
        place,
        f"""
        base=$({PODMAN} pull -q oci-archive:{image(place, "debian")})
        mkdir context
        printf 'FROM %s\\nRUN rm -r /usr/share/doc && mkdir /usr/share/doc && mv /opt /optional\\\\\n\
 && chown 33:33 /etc/motd && chmod 4750 /usr/bin/env && ln /usr/bin/env /usr/bin/env-again\\n' \\
            $base > context/Containerfile
        {PODMAN} build -q {LIMITS} -t built context >/dev/null
        {PODMAN} run --rm {LIMITS} built sh -ec '
            grep " / " /proc/mounts
            ls /usr/share/doc /optional
            stat -c "%u %g %a %h" /etc/motd /usr/bin/env /usr/bin/env-again
            su -s /bin/sh www-data -c "echo www > /tmp/mine; stat -c %u /tmp/mine"
            echo changed > /etc/motd; cat /etc/motd'
        """,
    ).splitlines()
    assert shown[0].startswith("overlayfs-py / fuse.overlayfs-py rw")
    assert shown[1:] == [
        *("/optional:", "", "/usr/share/doc:"),
        *("33 33 644 1", "0 0 4750 2", "0 0 4750 2"),
        *("33", "changed"),
    ]


def test_a_user_imports_mounts_changes_and_finds_it_again(place: Path) -> None:
    shown = run_as_user(
        place,
        f"""
        layerstore import oci-archive:{image(place, "odd")} --tag odd >/dev/null
        mkdir mnt
        overlayfs-py mount -o squash_to_uid={UID},squash_to_gid={UID},xattr_permissions=2 --name kept odd mnt
        cat mnt/links/one; echo
        echo changed > mnt/links/two
        rm mnt/kinds/file65
        overlayfs-py diff mnt
        overlayfs-py umount mnt
        overlayfs-py mount --name kept odd mnt
        cat mnt/links/one
        test ! -e mnt/kinds/file65
        overlayfs-py umount mnt
        grep -c " $PWD/mnt " /proc/mounts || true
        """,
    ).splitlines()
    assert shown[0] == "three names"
    assert {"C /links/two", "D /kinds/file65"} <= set(shown)
    assert shown[-2:] == ["changed", "0"]
