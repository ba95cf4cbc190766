"""Making empty files in a directory that a lower layer has too: locks, markers, touch(1)."""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload

COUNT = 1000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """A directory with a few names of its own."""
    site.flat(numbered(10, "lower"), 0)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Each new name once."""
    return {"": arena.probe("create", shuffled(numbered(COUNT)))}


WORKLOAD = Workload(
    name="create",
    family="Files",
    title="create and close an empty file",
    parts={"": MICROSECONDS},
    variants=(Variant({}, quick=("tmpfs",), seconds=0.5),),
    lay=lay,
    measure=measure,
)
