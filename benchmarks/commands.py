"""Runs other programs: timed, bounded, and never left behind when the run is interrupted.

Programs run in a session of their own, so that Ctrl-C reaches the harness alone, which then ends
what it started.
"""

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import CannotMeasure

MEMORY_INTERVAL_S = 0.01


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended, what it printed, and what it used with its children. `peak` is the most
    memory that it had resident itself, in bytes; 0 where nobody looked."""

    argv: list[str]
    status: int
    output: bytes
    errors: str
    wall_s: float
    cpu_s: float
    peak: int

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
    watch_memory: bool = False,
) -> Finished:
    """Runs `argv` to its end, whatever its status.

    Output goes to files, not pipes: a daemon that the program leaves behind may keep them open.
    `watch_memory` looks at its memory a hundred times a second. Raises CannotMeasure where the
    program cannot be started or takes longer than `timeout_s`.
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
        look_s = MEMORY_INTERVAL_S if watch_memory else None
        status, cpu_s, peak = _wait(process, words[0], timeout_s, look_s)
        wall_s = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        return Finished(
            words,
            status,
            output.read(),
            errors.read().decode(errors="replace"),
            wall_s,
            cpu_s,
            peak,
        )


def must(finished: Finished) -> Finished:
    """The same, if its status was 0. Raises CannotMeasure with its last words otherwise."""
    if finished.status != 0:
        raise CannotMeasure(finished.reason())
    return finished


def _wait(
    process: subprocess.Popen[bytes], name: str, timeout_s: float, look_s: float | None
) -> tuple[int, float, int]:
    peak = 0
    end = time.monotonic() + timeout_s
    try:
        descriptor = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            while not poll.poll((timeout_s if look_s is None else look_s) * 1000):
                peak = max(peak, _peak(process.pid))
                if time.monotonic() < end:
                    continue
                raise CannotMeasure(f"{name} took longer than {timeout_s:.0f} s")
        finally:
            os.close(descriptor)
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        _end(process)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime, peak


def _peak(pid: int) -> int:
    """What a process had resident at most since it was started, in bytes. ru_maxrss would count what
    its parent had when it forked."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", text, re.M)
    return int(found[1]) * 1024 if found else 0


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
