"""Which processes serve a mount, and what they use: processor time and memory.

Reads /proc only, so it works for any program. Any thread may call it.
"""

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
EXIT_GRACE_S = 0.02


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a set of processes: `rss` counts shared pages once per process, `pss` by share."""

    rss: int
    pss: int


def daemons_of(mountpoint: Path) -> list[int]:
    """The processes that hold the FUSE connection of `mountpoint` open.

    Since Linux 6.16 /proc/PID/fdinfo names the connection of an open /dev/fuse, which is the minor
    number of the mount's device. Before, every process that has /dev/fuse open is returned that
    names the mountpoint on its command line.
    """
    connection = os.minor(os.stat(mountpoint).st_dev)
    by_connection, by_name = [], []
    for pid in _pids():
        found = _fuse_connections(pid)
        if found is None:
            continue
        if connection in found:
            by_connection.append(pid)
        elif not found and os.fsencode(mountpoint) in _command_line(pid):
            by_name.append(pid)
    return by_connection or by_name


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(PROC) if name.isdigit()]


def _command_line(pid: int) -> list[bytes]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _fuse_connections(pid: int) -> set[int] | None:
    """The connections of a process's open /dev/fuse; None where it has none open."""
    directory = PROC / str(pid) / "fd"
    connections: set[int] = set()
    has_device = False
    try:
        for descriptor in os.listdir(directory):
            if os.readlink(directory / descriptor) != "/dev/fuse":
                continue
            has_device = True
            text = (PROC / str(pid) / "fdinfo" / descriptor).read_text()
            connections.update(int(n) for n in re.findall(r"^fuse_connection:\s*(\d+)", text, re.M))
    except OSError:  # it ended meanwhile, or belongs to someone else
        return None
    return connections if has_device else None


def cpu_seconds(pids: list[int]) -> float | None:
    """Processor time that `pids` have used since they started, ended threads included.

    The clock of a whole process, in nanoseconds (clock_getcpuclockid(3)): /proc/PID/stat counts in
    hundredths of a second. None where there is no process or one has ended.
    """
    if not pids:
        return None
    try:
        # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of <linux/posix-timers.h>.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)
    except OSError:
        return None


def memory(pids: list[int]) -> Memory:
    """Resident memory of `pids` together; a process that has ended counts nothing."""
    rss = pss = 0
    for pid in pids:
        try:
            text = (PROC / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        for name, kib in re.findall(r"^(Rss|Pss):\s+(\d+) kB", text, re.M):
            if name == "Rss":
                rss += int(kib) * 1024
            else:
                pss += int(kib) * 1024
    return Memory(rss, pss)


def kernel_slab_bytes() -> int:
    """What the kernel's own objects (dentries and inodes among them) take up just now."""
    match = re.search(r"^Slab:\s+(\d+) kB", (PROC / "meminfo").read_text(), re.M)
    return int(match[1]) * 1024 if match else 0


def available_memory_bytes() -> int:
    """What can still be used without swapping."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", (PROC / "meminfo").read_text(), re.M)
    return int(match[1]) * 1024 if match else 0


def wait_until_released(pids: list[int], connection: int, timeout_s: float) -> None:
    """Waits until none of `pids` serves FUSE connection `connection`, at most `timeout_s`.

    A daemon of one mount ends then; one that serves many goes on.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        serving = [found for pid in pids if (found := _fuse_connections(pid)) is not None]
        # Without the connection in fdinfo an open /dev/fuse may be another mount's: not waited for.
        if not any(connection in found for found in serving):
            break
        time.sleep(0.002)
    # One that ends is busy ending; one that stays must not be waited for.
    end = min(end, time.monotonic() + EXIT_GRACE_S)
    while any(_lives(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.001)


def end(pids: list[int], timeout_s: float = 10.0) -> None:
    """Asks `pids`, daemons that this run started, to end, and insists after `timeout_s`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + timeout_s
        while (pids := [pid for pid in pids if _lives(pid)]) and time.monotonic() < until:
            time.sleep(0.005)


def start_time(pid: int) -> float | None:
    """When a process started, in seconds since boot; None where it is no more."""
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _lives(pid: int) -> bool:
    try:
        state = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"
