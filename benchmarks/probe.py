"""The compiled helper that issues system calls: built on first use, run once for each sample.

Owns the compiling and caching of `probe.c` and the reading of its one line of output. Any
thread may call it.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from benchmarks.errors import CannotMeasure, UserError

SOURCE = Path(__file__).with_name("probe.c")
COMPILER_FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]


class ProbeResult(msgspec.Struct, frozen=True):
    """One call of the helper; every time in nanoseconds, as probe.c describes them."""

    operations: int
    wall_ns: int
    first_ns: int
    user_ns: int
    system_ns: int
    p50_ns: int
    p99_ns: int
    max_ns: int
    clock_ns: int


class _Refusal(msgspec.Struct):
    errno: int
    message: str


def cache_directory() -> Path:
    """Where the compiled helper is kept: `$XDG_CACHE_HOME/overlayfs-py`, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "overlayfs-py"


def build(cache: Path | None = None) -> Path:
    """Compiles the helper unless this very source was compiled before; returns its path.

    Raises UserError where there is no compiler or the compiler fails.
    """
    source = SOURCE.read_bytes()
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise UserError("no C compiler (cc) found: the benchmarks need one, e.g. apt install gcc")
    key = hashlib.sha256(source + " ".join([compiler, *COMPILER_FLAGS]).encode()).hexdigest()[:16]
    directory = cache or cache_directory()
    target = directory / f"probe-{key}"
    if target.exists():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=directory, prefix="probe-unfinished-")
    except OSError as error:
        raise UserError(f"cannot write the compiled helper: {error}") from None
    os.close(descriptor)
    try:
        done = subprocess.run(
            [compiler, *COMPILER_FLAGS, "-o", unfinished, str(SOURCE)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise UserError(f"{compiler} cannot compile {SOURCE}: {reason}")
        os.chmod(unfinished, 0o755)
        os.rename(unfinished, target)
    except FileNotFoundError:
        raise UserError(f"no C compiler {compiler!r}: set CC, or apt install gcc") from None
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
    return target


def command_line(
    binary: Path,
    operation: str,
    directory: Path,
    names: Path | None = None,
    size: int = 0,
    passes: int = 1,
    warm: int = 0,
    delay_ns: int = 0,
) -> list[str]:
    """The argument list of one call; the meaning of each argument stands in probe.c."""
    argv = [str(binary), operation, "--dir", str(directory)]
    if names is not None:
        argv += ["--names", str(names)]
    numbers = {"--size": size, "--passes": passes, "--warm": warm, "--delay-ns": delay_ns}
    for option, value in numbers.items():
        if value != (1 if option == "--passes" else 0):
            argv += [option, str(value)]
    return argv


def read_output(output: bytes, status: int) -> ProbeResult:
    """Turns what the helper printed into a result.

    Raises CannotMeasure with the errno's name where a system call was refused.
    """
    if status == 3:
        refusal = msgspec.json.decode(output, type=_Refusal)
        name = errno.errorcode.get(refusal.errno, str(refusal.errno))
        raise CannotMeasure(f"{name}: {refusal.message}")
    if status != 0:
        raise CannotMeasure(f"the helper ended with status {status}: {output[:200]!r}")
    return msgspec.json.decode(output, type=ProbeResult)
