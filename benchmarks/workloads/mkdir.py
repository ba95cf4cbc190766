"""Making directories inside one that a lower layer has too, as an installer does."""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload

COUNT = 500


def lay(site: Site, parameters: Parameters) -> list[str]:
    """A directory with a few names of its own."""
    site.flat(numbered(10, "lower"), 0)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Each new name once."""
    return {"": arena.probe("mkdir", shuffled(numbered(COUNT)))}


WORKLOAD = Workload(
    name="mkdir",
    family="Directories",
    title="make a directory",
    parts={"": MICROSECONDS},
    variants=(Variant({}, seconds=0.5),),
    lay=lay,
    measure=measure,
)
