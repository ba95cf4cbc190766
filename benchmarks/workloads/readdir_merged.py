"""Listing a directory that every layer has a part of: /usr/bin or site-packages of a real image.

The first listing after the caches were dropped, per entry; what it costs to merge.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, integer

NAMES = 5000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The names dealt out over the layers."""
    return site.spread(numbered(NAMES), integer(parameters, "layers"))


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One pass of getdents64(2) to the end."""
    arena.drop_caches()
    return {"": arena.probe("list")}


WORKLOAD = Workload(
    name="readdir-merged",
    family="Directories",
    title="list a merged directory, per entry",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"layers": 2}),
        Variant({"layers": 20}, quick=("tmpfs",)),
        Variant({"layers": 100}),
        Variant({"layers": 400}),
    ),
    lay=lay,
    measure=measure,
    changes=False,
)
