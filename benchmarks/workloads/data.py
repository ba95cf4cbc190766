"""Moving data through one open file, by fio: what a program pays that already has its file open.

Reads are the first of a lower file whose pages are cached below the union; `cache=filled` ones come
after the whole file was read through the mount. `of=read-only` mounts the same layers without an
upper, `of=upper` reads what was written through the mount. Writes are to a file that was made
through the mount. One job, one request at a time, so that the mean latency is the cost of a
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
FILE_BYTES = 256 * MIB
UPPER, READ_ONLY, FILLED = "upper", "read-only", "filled"


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
    """The file to read, and below it a layer with nothing: one alone cannot be mounted read-only."""
    fill(site.layer("0") / "data")
    site.layer("1")
    return ["0", "1"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One job of fio over the file, or as many requests of it as the kind has."""
    kind = KINDS[text(parameters, "call")]
    block = integer(parameters, "block")
    reading = "read" in kind.rw
    target = to_read(arena, parameters) if reading else to_write(arena, kind)
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


def to_read(arena: Arena, parameters: Parameters) -> Path:
    """The file that is read, as cached as the row wants it."""
    target = arena.root / "data"
    if parameters.get("of") == UPPER:
        target = arena.root / "new"
        fill(target)
        arena.drop_caches()  # with the inode go the pages that writing may have left in the union
    else:
        warm(arena.layers.paths()[0] / "data")
    if parameters.get("cache") == FILLED:
        warm(target)
    return target


def to_write(arena: Arena, kind: _Kind) -> Path:
    """The file that is written: new, or as long as it will be where fio does not extend it."""
    target = arena.root / "new"
    if kind.rw == "randwrite" or kind.engine == "mmap":
        with open(target, "wb") as file:
            file.truncate(FILE_BYTES)
    return target


def fill(path: Path) -> None:
    """Writes the file that is read."""
    block = bytes(range(256)) * (MIB // 256)
    with open(path, "wb") as file:
        for _ in range(FILE_BYTES // MIB):
            file.write(block)


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
    """Reads a whole file, so that its pages are cached where it was read."""
    with open(path, "rb") as file:
        while file.read(MIB):
            pass


SPACE = 3 * FILE_BYTES
READS = (("read", 4096), ("read", MIB), ("randread", 4096), ("randread", MIB), ("mmap-read", 4096))
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
    )
    + tuple(
        Variant(
            {"call": call, "of": of, "cache": cache, "block": block},
            ("tmpfs",),
            seconds=1.0,
            space=SPACE,
            read_only=of == READ_ONLY,
        )
        for of, cache in (
            ("lower", FILLED),
            (READ_ONLY, "first"),
            (READ_ONLY, FILLED),
            (UPPER, "first"),
            (UPPER, FILLED),
        )
        for call, block in READS
    ),
    lay=lay,
    measure=measure,
)
