"""A user without privilege: fusermount3, user.overlay marks, a runtime directory of one's own."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_py import mountinfo, registry
from tests.command.command import ROOT

pytestmark = pytest.mark.mount

USER = 65534

# The interpreter may live where only root can read it, so everything is imported before privilege
# goes.
AS_USER = f"""
import os, sys, subprocess
import overlayfs_py.cli, overlayfs_py.client, overlayfs_py.daemon, overlayfs_py.loop
import overlayfs_py.journal, overlayfs_py.processes, overlayfs_py.remount, overlayfs_py.unmount
import overlayfs_py.inspect.diff, overlayfs_py.wire.libfuse, overlayfs_py.wire.nodes, trio
import overlayfs_py.wire.device.transport, overlayfs_py.wire.device.verbs
os.setgroups([])
os.setresgid({USER}, {USER}, {USER})
os.setresuid({USER}, {USER}, {USER})
sys.exit(overlayfs_py.cli.run(sys.argv[1:]))
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Layers that the user owns. pytest's own directories cannot be entered by others."""
    if os.geteuid() != 0:
        pytest.skip("becomes another user, which needs root")
    place = Path(tempfile.mkdtemp(prefix="overlayfs-py-rootless-"))
    for name in ("a", "u", "w", "m", "run"):
        (place / name).mkdir()
    (place / "a/low").write_text("low")
    for path in [place, *place.rglob("*")]:
        os.chown(path, USER, USER)
    monkeypatch.setenv(registry.ENVIRONMENT, str(place / "run"))
    monkeypatch.setenv("OVERLAYFS_PY_LOG", str(place / "run/log"))
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    # As distributions have it.
    os.chmod("/dev/fuse", 0o666)
    try:
        yield place
        as_user(place, "umount", "--lazy", "m")
        assert not os.path.ismount(place / "m")
    finally:
        os.chmod("/dev/fuse", mode)
        shutil.rmtree(place)


def as_user(base: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_USER, *arguments],
        cwd=base,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )


def test_mount_change_diff_and_unmount(base: Path) -> None:
    done = as_user(base, "-o", "lowerdir=a,upperdir=u,workdir=w", "m")
    assert (done.returncode, done.stderr) == (0, "")
    entry = mountinfo.top(os.fsencode(base / "m"))
    assert entry is not None
    assert {b"nosuid", b"nodev"} <= set(entry.options.split(b","))
    # Nobody but the mounting user may enter, root included.
    with pytest.raises(PermissionError):
        os.listdir(base / "m")
    script = "echo more >> m/low && mkdir m/new && mv m/new m/moved && rm m/low && echo x > m/other"
    subprocess.run(
        ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "sh", "-ec", script],
        cwd=base,
        check=True,
    )
    found = json.loads(as_user(base, "diff", "--json", "u").stdout)
    assert [(change["kind"], change["path"]) for change in found["changes"]] == [
        ("D", "/low"),
        ("A", "/moved"),
        ("A", "/other"),
    ]
    assert "userxattr" in found["kernel"]["options"]
    assert as_user(base, "umount", "m").returncode == 0
    assert as_user(base, "-o", "lowerdir=a,upperdir=u,workdir=w", "m").returncode == 0


def test_allow_other_needs_the_administrators_word(base: Path) -> None:
    with open("/etc/fuse.conf") as file:
        if "\nuser_allow_other" in file.read():
            pytest.skip("/etc/fuse.conf allows it to everybody")
    done = as_user(base, "-o", "lowerdir=a,allow_other", "m")
    assert done.returncode == 1
    assert "user_allow_other" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_remount_without_privilege_is_one_line(base: Path) -> None:
    assert as_user(base, "-o", "lowerdir=a,upperdir=u,workdir=w", "m").returncode == 0
    done = as_user(base, "-o", "remount,ro", "m")
    assert done.returncode == 1
    assert "only root may change" in done.stderr
