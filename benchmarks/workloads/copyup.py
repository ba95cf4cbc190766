"""Changing one byte of a lower file of a given size: a database or a disk image kept in a layer.

Two values from one sample. `first-byte`: from open(2) until pwrite(2) of the byte has returned,
which is how long the program stands still. `total`: until fsync(2) and close(2) have returned, so
that the whole file is safe in the upper. On file systems with reflink the copy can be free.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered
from benchmarks.workload import (
    MICROSECONDS,
    SECONDS_OF,
    Measurement,
    Parameters,
    Variant,
    Workload,
    integer,
)

ALL = ("disk", "xfs", "btrfs")
BYTES_AT_MOST = 16 << 20  # of small files together, each copied once


def files(size: int) -> int:
    """How many files one sample changes."""
    return max(1, min(64, BYTES_AT_MOST // size))


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The files, full of data."""
    size = integer(parameters, "bytes")
    directory = site.layer("0") / "d"
    directory.mkdir()
    block = bytes(range(256)) * 4096
    for name in numbered(files(size)):
        with open(directory / name, "wb") as file:
            for at in range(0, size, len(block)):
                file.write(block[: size - at])
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One byte of each file."""
    count = files(integer(parameters, "bytes"))
    result, total = arena.probe_raw("first-byte", numbered(count))
    wall_s = result.first_ns / 1e9
    first = Measurement(
        value=wall_s / count / SECONDS_OF[MICROSECONDS], wall_s=wall_s, operations=count
    )
    return {"first-byte": first, "total": total}


WORKLOAD = Workload(
    name="copyup",
    family="Copy-up",
    title="write a byte into a lower file",
    parts={"first-byte": MICROSECONDS, "total": MICROSECONDS},
    variants=(
        Variant({"bytes": 4 << 10}, ALL, seconds=0.4),
        Variant({"bytes": 64 << 10}, ALL, seconds=0.4),
        Variant({"bytes": 1 << 20}, ALL, quick=("disk",), seconds=0.3, space=100 << 20),
        Variant({"bytes": 16 << 20}, ALL, seconds=0.3, space=100 << 20),
        Variant({"bytes": 256 << 20}, ALL, seconds=1.5, space=1 << 30),
        Variant({"bytes": 1 << 30}, ALL, seconds=5.0, space=4 << 30),
    ),
    lay=lay,
    measure=measure,
    axis="bytes",
)
