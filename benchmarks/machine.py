"""What a result says about the machine it was taken on."""

import os
import platform
import re
import shutil
from pathlib import Path

from benchmarks import commands
from benchmarks.errors import CannotMeasure
from benchmarks.results import Machine

PROGRAMS = ("mount", "fusermount3", "fio", "git", "tar", "cc", "mkfs.xfs", "mkfs.btrfs")


def describe() -> Machine:
    """This machine, just now."""
    return Machine(
        hostname=platform.node(),
        architecture=platform.machine(),
        processor=_first(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo")),
        processors=len(os.sched_getaffinity(0)),
        memory_kib=int(_first(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo")) or 0),
        kernel=f"{platform.system()} {platform.release()} {platform.version()}",
        system=_first(r'^PRETTY_NAME="?([^"\n]+)', Path("/etc/os-release")),
        python=platform.python_version(),
        virtualization=_virtualization(),
        clocksource=_first(
            r"^(.+)$", Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        ),
        privileged=os.geteuid() == 0,
        programs={name: version for name in PROGRAMS if (version := _version(name))},
    )


def busy() -> str | None:
    """A warning where others use the processors now; None where all is quiet."""
    load = os.getloadavg()[0]
    processors = len(os.sched_getaffinity(0))
    if load < 0.3 * processors:
        return None
    return (
        f"the machine is busy (load {load:.1f} on {processors} processors): expect wide intervals"
    )


def _first(pattern: str, path: Path) -> str:
    try:
        match = re.search(pattern, path.read_text(), re.M)
    except OSError:
        return ""
    return match[1].strip() if match else ""


def _virtualization() -> str:
    flags = _first(r"^flags\s*:\s*(.+)$", Path("/proc/cpuinfo")).split()
    return "virtual machine" if "hypervisor" in flags else "none known"


def _version(program: str) -> str:
    if shutil.which(program) is None:
        return ""
    option = "-V" if program.startswith("mkfs.") or program == "fusermount3" else "--version"
    try:
        finished = commands.run([program, option], timeout_s=10)
    except CannotMeasure:
        return ""
    lines = (finished.output.decode(errors="replace") + finished.errors).strip().splitlines()
    return lines[0].strip() if lines else ""
