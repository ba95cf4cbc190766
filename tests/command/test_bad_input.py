"""Bad input through the real command: one line, status 1, nothing mounted, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.command.command import refusal, run

BEFORE_THE_DAEMON = [
    ([], "expected MNT"),
    (["-o"], "expected one argument"),
    (["a", "b", "c"], "expected MNT, or SOURCE MNT"),
    (["-x", "m"], "unrecognized arguments: -x"),
    (["m"], "no lower directory"),
    (["-o", "lowrdir=a", "m"], "unknown mount option 'lowrdir': did you mean 'lowerdir'?"),
    (["-o", "lowerdir=a,nfs_export=on", "m"], "nfs_export=on cannot be honoured"),
    (["-o", "lowerdir=a", ""], "the mountpoint is empty"),
    (["-o", "remount,ro", "m"], "m is not a mount of overlayfs-py"),
    (["umount"], "the following arguments are required: MNT"),
    (["umount", "m"], "m is not a mountpoint"),
    (["umount", "/proc"], "is a mount of type proc, not of overlayfs-py"),
    (["ps", "extra"], "unrecognized arguments: extra"),
    (["diff", "nowhere"], "nowhere is neither a mount of overlayfs-py nor a directory"),
    (["which", "a"], "a is not in a mount of overlayfs-py"),
    (["-o", "lowerdir=a", "x\ny"], "does not exist"),
    (["mount", "image"], "the following arguments are required: MNT"),
    (["mount", "--upper", "u", "image", "m"], "--upper and --work go together"),
    (["mount", "--ro", "--name", "x", "image", "m"], "not allowed with argument"),
    (["mount", "-o", "lowerdir=a", "image", "m"], "an image brings its own lower layers"),
]


@pytest.mark.parametrize(("arguments", "why"), BEFORE_THE_DAEMON, ids=str)
def test_refused_by_the_command(tmp_path: Path, arguments: list[str], why: str) -> None:
    for name in ("a", "m", "u", "w"):
        (tmp_path / name).mkdir()
    assert why in refusal(*arguments, cwd=tmp_path)


IN_THE_DAEMON = [
    ("lowerdir=nowhere", "m", "nowhere does not exist: create it"),
    ("lowerdir=a:nowhere", "m", "nowhere does not exist: create it"),
    ("lowerdir=file", "m", "file is not a directory"),
    ("lowerdir=a,upperdir=u,workdir=nowhere", "m", "workdir"),
    ("lowerdir=a,upperdir=u,workdir=/dev/shm", "m", "on another filesystem than upperdir"),
    ("lowerdir=a,upperdir=u,workdir=u/in", "m", "lies inside upperdir"),
    ("lowerdir=a:a", "m", "is the same directory as lowerdir"),
    ("lowerdir=a", "nowhere", "mountpoint"),
    ("lowerdir=a", "file", "file is not a directory"),
]


@pytest.mark.mount
@pytest.mark.parametrize(("options", "mountpoint", "why"), IN_THE_DAEMON)
@pytest.mark.parametrize("foreground", [False, True], ids=["daemon", "foreground"])
def test_refused_on_sight_of_the_directories(
    tmp_path: Path, runtime: Path, options: str, mountpoint: str, why: str, foreground: bool
) -> None:
    for name in ("a", "m", "u/in", "w"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    how = ["-f"] if foreground else []
    assert why in refusal(*how, "-o", options, mountpoint, cwd=tmp_path)
    assert not os.path.ismount(tmp_path / "m")
    assert list(runtime.glob("*.json")) == []
    assert list((tmp_path / "w").iterdir()) == []


def test_help_and_version_need_nothing_else() -> None:
    for arguments in (["-h"], ["--help"], ["mount", "--help"], ["ps", "-h"]):
        done = run(*arguments)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: overlayfs-py")
    for word in ("-V", "--version"):
        done = run(word)
        assert done.returncode == 0
        assert done.stdout.startswith("overlayfs-py: version ")


def test_the_command_imports_neither_trio_nor_the_transport_to_say_no(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from overlayfs_py.cli import run; run(['-o', 'nonsense', 'm']);"
        "print(sorted({'trio', 'pyfuse3', 'asyncio', 'difflib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    assert done.stdout.strip() == "['difflib']"
