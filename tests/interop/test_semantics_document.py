"""The examples in SEMANTICS.md do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "SEMANTICS.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)
END = "-- end of output --"


class Shell:
    """One bash for all examples, so that they can build on each other."""

    def __init__(self, directory: Path) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env={**os.environ, "PATH": path, "LC_ALL": "C"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> list[str]:
        """The lines a command prints, and `[status N]` if it fails."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\necho '{END}'$?\n")
        self._bash.stdin.flush()
        lines = []
        for line in self._bash.stdout:
            text, mark, status = line.rstrip("\n").partition(END)
            if text or not mark:
                lines.append(text)
            if mark:
                return lines if status == "0" else [*lines, f"[status {status}]"]
        raise AssertionError(f"the shell ended in {command!r}")

    def close(self) -> None:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._bash.wait(10)
        self._bash.stdout.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.run("mountpoint -q merged && umount merged")
    shell.close()


def test_the_examples(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall(DOCUMENT.read_text())
    assert {kind for kind, _ in blocks} == {"console", "python"}
    monkeypatch.chdir(tmp_path)
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(DOCUMENT), "exec"), {})
            continue
        for example in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, *output = example.rstrip("\n").split("\n")
            assert shell.run(command) == output, command
