"""Moving data through one open file, by fio: what a program pays that already has its file open.

Reads are of a lower file whose pages are cached below the union; writes are to a file that was
made through the mount. One job, one request at a time, so that the mean latency is the cost of a
request; given per MiB. `write-fsync` is 4 KiB and an fsync(2) after each, per request.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks import commands
from benchmarks.arena import Arena, difference
from benchmarks.errors import CannotMeasure
from benchmarks.forge import Site
from benchmarks.workload import (
    MICROSECONDS_PER_MIB,
    Measurement,
    Parameters,
    Variant,
    Workload,
    integer,
    text,
)

MIB = 1 << 20
FILE_BYTES = 128 * MIB


class _Latency(msgspec.Struct):
    mean: float


class _Direction(msgspec.Struct):
    total_ios: int
    io_bytes: int
    lat_ns: _Latency


class _Sync(msgspec.Struct):
    total_ios: int
    lat_ns: _Latency


class _Job(msgspec.Struct):
    read: _Direction
    write: _Direction
    sync: _Sync
    usr_cpu: float
    sys_cpu: float
    job_runtime: int


class _Report(msgspec.Struct):
    jobs: list[_Job]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How fio is told: `rw` and `engine` are its words, `requests` bounds a sample (0: the file).

    A write(2) that reaches a daemon takes some 30 to 300 us; a read that comes from the page cache 1 us.
    """

    rw: str
    engine: str = "psync"
    fsync: bool = False
    requests: int = 0


KINDS = {
    "read": _Kind("read"),
    "randread": _Kind("randread", requests=4096),
    "mmap-read": _Kind("read", engine="mmap"),
    "write": _Kind("write", requests=4096),
    "randwrite": _Kind("randwrite", requests=4096),
    "mmap-write": _Kind("write", engine="mmap", requests=4096),
    "write-fsync": _Kind("write", fsync=True, requests=100),
}


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The file to read."""
    layer = site.layer("0")
    block = bytes(range(256)) * (MIB // 256)
    with open(layer / "data", "wb") as file:
        for _ in range(FILE_BYTES // MIB):
            file.write(block)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One job of fio over the file, or as many requests of it as the kind has."""
    kind = KINDS[text(parameters, "call")]
    block = integer(parameters, "block")
    reading = "read" in kind.rw
    warm(arena.layers.paths()[0] / "data")
    target = arena.root / ("data" if reading else "new")
    if kind.rw == "randwrite" or (kind.engine == "mmap" and not reading):
        with open(target, "wb") as file:
            file.truncate(FILE_BYTES)
    argv = job(kind, block, target, arena.place / "fio")
    before = arena.mount.daemon_cpu_s()
    finished = commands.must(commands.run(argv))
    daemon_cpu_s = difference(before, arena.mount.daemon_cpu_s())
    done = msgspec.json.decode(finished.output, type=_Report).jobs[0]
    way = done.read if reading else done.write
    if way.total_ios == 0:
        raise CannotMeasure(f"fio did nothing: {finished.errors[:200]}")
    wall_ns = way.lat_ns.mean * way.total_ios
    if kind.fsync:
        wall_ns += done.sync.lat_ns.mean * done.sync.total_ios
    cpu_s = (done.usr_cpu + done.sys_cpu) / 100 * done.job_runtime / 1e3
    return {
        "": Measurement(
            value=wall_ns / 1e3 / (way.io_bytes / MIB),
            wall_s=wall_ns / 1e9,
            operations=way.total_ios,
            daemon_cpu_s=daemon_cpu_s,
            caller_cpu_s=cpu_s,
            extra={"per_request_us": wall_ns / 1e3 / way.total_ios},
        )
    }


def job(kind: _Kind, block: int, target: Path, place: Path) -> list[str]:
    """fio's command line."""
    place.mkdir(exist_ok=True)
    requests = min(kind.requests, FILE_BYTES // block)
    return [
        "fio",
        "--name=job",
        f"--filename={target}",
        f"--rw={kind.rw}",
        f"--ioengine={kind.engine}",
        f"--bs={block}",
        f"--size={FILE_BYTES}",
        f"--aux-path={place}",
        "--iodepth=1",
        "--thread",
        "--invalidate=0",
        "--randrepeat=1",
        "--fallocate=none",
        "--output-format=json",
        *(["--readonly"] if "read" in kind.rw else []),
        *(["--fsync=1"] if kind.fsync else []),
        *([f"--number_ios={requests}"] if requests else []),
    ]


def warm(path: Path) -> None:
    """Reads a file below the union, so that its pages are cached there."""
    with open(path, "rb") as file:
        while file.read(MIB):
            pass


SPACE = 3 * FILE_BYTES
WORKLOAD = Workload(
    name="data",
    family="Data",
    title="data through one open file",
    parts={"": MICROSECONDS_PER_MIB},
    variants=tuple(
        Variant({"call": call, "block": block}, bases, quick, seconds, SPACE)
        for call, block, bases, quick, seconds in (
            ("read", 4096, ("tmpfs", "disk"), (), 1.0),
            ("read", MIB, ("tmpfs", "disk"), ("tmpfs",), 0.6),
            ("randread", 4096, ("tmpfs", "disk"), (), 0.7),
            ("randread", MIB, ("tmpfs", "disk"), (), 0.7),
            ("mmap-read", 4096, ("tmpfs", "disk"), (), 0.8),
            ("write", 4096, ("tmpfs", "disk"), ("tmpfs",), 1.5),
            ("write", MIB, ("tmpfs", "disk"), (), 0.8),
            ("randwrite", 4096, ("tmpfs", "disk"), (), 0.8),
            ("randwrite", MIB, ("tmpfs", "disk"), (), 0.8),
            ("mmap-write", 4096, ("tmpfs", "disk"), (), 1.0),
            ("write-fsync", 4096, ("disk",), (), 1.5),
        )
    ),
    lay=lay,
    measure=measure,
)
