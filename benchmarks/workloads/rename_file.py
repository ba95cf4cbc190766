"""Renaming files: how editors, package managers and databases make a change atomic.

Of the upper: written through the mount just before. Of a lower: each is copied up and leaves a
whiteout behind.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, text

FILES = 500


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The files, or only the directory for them."""
    site.flat(numbered(FILES) if text(parameters, "of") == "lower" else [], 1024)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Each name to one that is free."""
    names = shuffled(numbered(FILES))
    if text(parameters, "of") == "upper":
        arena.untimed("make", names, size=1024)
    return {"": arena.probe("rename", names)}


WORKLOAD = Workload(
    name="rename-file",
    family="Names",
    title="rename a file",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"of": "upper"}, quick=("tmpfs",), seconds=0.4),
        Variant({"of": "lower"}, seconds=0.5),
    ),
    lay=lay,
    measure=measure,
)
