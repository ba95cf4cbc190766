"""Listing a directory that one layer has: `ls`, shell globs, an interpreter's import.

The first listing after the caches were dropped, per entry.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, integer


def lay(site: Site, parameters: Parameters) -> list[str]:
    """One directory of one layer."""
    site.flat(numbered(integer(parameters, "names")), 0)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One pass of getdents64(2) to the end."""
    arena.drop_caches()
    return {"": arena.probe("list")}


WORKLOAD = Workload(
    name="readdir",
    family="Directories",
    title="list a directory, per entry",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"names": 100}),
        Variant({"names": 1000}),
        Variant({"names": 10_000}),
        Variant({"names": 100_000}, seconds=1.0, space=512 << 20),
    ),
    lay=lay,
    measure=measure,
    changes=False,
)
