"""Scratch directories of killed runs are swept, mounts and all; those of living ones stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import scratch
from tests.tools.conftest import TOP

KILLED = """
import os, subprocess, sys, tempfile
from tests import scratch
tempfile.tempdir = sys.argv[1]
directory, lock = scratch.create()
(directory / "tests").mkdir()
if sys.argv[2] == "mount":
    os.mkdir(directory / "tests/with space")
    subprocess.run(["mount", "-t", "tmpfs", "scratch", directory / "tests/with space"], check=True)
    (directory / "tests/with space/file").write_text("below the mount")
os.mkdir(directory / "tests/closed", 0)
print(directory, flush=True)
sys.stdin.read() if sys.argv[2] == "live" else os.kill(os.getpid(), 9)
"""


def start(place: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TOP)},
    )


@pytest.mark.parametrize("how", ["plain", pytest.param("mount", marks=pytest.mark.mount)])
def test_what_a_killed_run_left_goes(tmp_path: Path, how: str) -> None:
    (tmp_path / f"{scratch.PREFIX}no-lock").mkdir()
    (tmp_path / "another").mkdir()
    with start(tmp_path, how) as killed:
        assert killed.stdout is not None
        directory = Path(killed.stdout.read().strip())
    assert directory.exists()
    assert bool(scratch.mounts_below(directory)) == (how == "mount")
    assert scratch.sweep(tmp_path) == [directory]
    assert not directory.exists()
    assert scratch.mounts_below(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {f"{scratch.PREFIX}no-lock", "another"}


def test_a_living_run_keeps_its_directory(tmp_path: Path) -> None:
    with start(tmp_path, "live") as living:
        assert living.stdout is not None
        directory = Path(living.stdout.readline().strip())
        assert scratch.sweep(tmp_path) == []
        assert directory.exists()
        living.communicate("")
    assert scratch.sweep(tmp_path) == [directory]
