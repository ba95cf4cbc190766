"""A home for the tools: cache, store and runtime directory of the test's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import scratch

TOP = Path(__file__).parents[2]
Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Tool]:
    """Runs a tool by name; images that are built already are found again."""
    cache = tmp_path / "cache"
    (cache / "overlayfs-py").mkdir(parents=True)
    built = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "overlayfs-py/images"
    built.mkdir(parents=True, exist_ok=True)
    (cache / "overlayfs-py/images").symlink_to(built)
    (tmp_path / "runtime").mkdir(mode=0o700)
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "LAYERSTORE_ROOT": str(tmp_path / "store"),
        "OVERLAYFS_PY_RUNTIME_DIR": str(tmp_path / "runtime"),
    }

    def run(
        name: str, *words: str | Path, cwd: Path = tmp_path, **added: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TOP / "tools" / name, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            cwd=cwd,
            env={**environment, **added},
            check=False,
        )

    yield run
    command = TOP / ".venv/bin/overlayfs-py"
    for mountpoint in scratch.mounts_below(tmp_path):
        subprocess.run([command, "umount", mountpoint], check=True, env=environment)


def one_line(done: subprocess.CompletedProcess[str], name: str) -> str:
    """What a tool said as it refused; fails unless that was one line."""
    assert done.returncode not in (0, None), done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"{name}: ")
    return lines[0].removeprefix(f"{name}: ")
