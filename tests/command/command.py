"""Runs the real command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "overlayfs_py"]
ROOT = Path(__file__).resolve().parents[2]


def run(
    *arguments: str | bytes | Path, cwd: Path | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run `overlayfs-py` with these arguments.

    The output goes through pipes to their end, so a daemon that kept them open would hang here.
    """
    return subprocess.run(
        [*COMMAND, *map(os.fsdecode, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="surrogateescape",
        timeout=timeout,
        check=False,
    )


def refusal(*arguments: str | bytes | Path, cwd: Path | None = None) -> str:
    """The one line that the command answers bad input with; anything else fails."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("overlayfs-py: ")
    return lines[0].removeprefix("overlayfs-py: ")
