"""Other programs that build images: run, watched, and their scratch space cleared."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


class Failed(Exception):
    """One line: what could not be done, and what to do."""


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="building-", dir=parent))
    try:
        yield place
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", place], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(place, onerror=_not_mine)


def _not_mine(_function: object, path: str, _error: object) -> None:
    print(f"images: could not remove {path}", file=sys.stderr)


def run(words: list[str | Path], what: str = "", **named: str) -> str:
    """Run a program.

    Args:
        words: the command.
        what: if given, announced on stderr, with the seconds it took.
        named: added to the environment.

    Returns:
        Its output.

    Raises:
        Failed: it is not installed, or did not succeed.
    """
    program = str(words[0])
    if shutil.which(program) is None:
        raise Failed(f"{program} is not installed: apt-get install {program}")
    with subprocess.Popen(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **named},
    ) as process:
        output, errors = watch(process, what)
    if process.returncode != 0:
        said = errors.decode(errors="replace").strip().splitlines()
        raise Failed(f"{program} failed ({process.returncode}): {said[-1] if said else 'silently'}")
    return output.decode()


def watch(process: subprocess.Popen[bytes], what: str) -> tuple[bytes, bytes]:
    """Wait for a process, and show that it is alive: each second to a terminal, seldom to a log."""
    start = time.monotonic()
    terminal = sys.stderr.isatty()
    while True:
        try:
            output, errors = process.communicate(timeout=1 if terminal else 15)
            break
        except subprocess.TimeoutExpired:
            if what:
                line = f"{what} ... {time.monotonic() - start:.0f} s"
                print(
                    f"\r{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr
                )
                sys.stderr.flush()
    if what:
        done = f"{what}: {time.monotonic() - start:.0f} s"
        print(f"\r\033[K{done}" if terminal else done, file=sys.stderr, flush=True)
    return output, errors
