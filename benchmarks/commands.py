"""Runs other programs: timed, bounded, and never left behind when the run is interrupted.

Programs run in a session of their own, so that Ctrl-C reaches the harness alone, which then ends
what it started.
"""

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import CannotMeasure


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended, what it printed, and what it used with its children."""

    argv: list[str]
    status: int
    output: bytes
    errors: str
    wall_s: float
    cpu_s: float

    def reason(self) -> str:
        """The last line of its complaint, for the user."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        detail = lines[-1].strip() if lines else "no message"
        return f"{self.argv[0]} ended with status {self.status}: {detail}"


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 300.0,
) -> Finished:
    """Runs `argv` to its end, whatever its status.

    Output goes to files, not pipes: a daemon that the program leaves behind may keep them open.
    Raises CannotMeasure where the program cannot be started or takes longer than `timeout_s`.
    """
    words = [str(word) for word in argv]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                words,
                cwd=cwd,
                env=None if environment is None else {**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotMeasure(f"{words[0]}: {error.strerror}") from None
        status, cpu_s = _wait(process, words[0], timeout_s)
        wall_s = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        return Finished(
            words, status, output.read(), errors.read().decode(errors="replace"), wall_s, cpu_s
        )


def must(finished: Finished) -> Finished:
    """The same, if its status was 0. Raises CannotMeasure with its last words otherwise."""
    if finished.status != 0:
        raise CannotMeasure(finished.reason())
    return finished


def _wait(process: subprocess.Popen[bytes], name: str, timeout_s: float) -> tuple[int, float]:
    try:
        descriptor = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                raise CannotMeasure(f"{name} took longer than {timeout_s:.0f} s")
        finally:
            os.close(descriptor)
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        _end(process)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the program and what it started, politely first: a mount command may tidy up."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(2)
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue
        return
