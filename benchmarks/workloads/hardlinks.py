"""Linking files: `git clone --local`, ccache, package stores that share one copy.

Of the upper: written through the mount just before. Of a lower: each is copied up first and must
stay one inode afterwards.
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
    """One more name for each file."""
    names = shuffled(numbered(FILES))
    if text(parameters, "of") == "upper":
        arena.untimed("make", names, size=1024)
    return {"": arena.probe("link", names)}


WORKLOAD = Workload(
    name="hardlinks",
    family="Names",
    title="hard link",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"of": "upper"}, seconds=0.4),
        Variant({"of": "lower"}, seconds=0.5),
    ),
    lay=lay,
    measure=measure,
)
