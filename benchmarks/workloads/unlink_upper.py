"""Deleting files that were made in the same mount: temporary files, build trees."""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload

FILES = 1000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """A directory of the lower layer to work in."""
    site.flat(numbered(10, "lower"), 0)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Each file once."""
    names = shuffled(numbered(FILES))
    arena.untimed("make", names)
    return {"": arena.probe("unlink", names)}


WORKLOAD = Workload(
    name="unlink-upper",
    family="Names",
    title="unlink an upper file",
    parts={"": MICROSECONDS},
    variants=(Variant({}, seconds=0.4),),
    lay=lay,
    measure=measure,
)
