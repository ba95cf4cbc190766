"""Writing new small files, as unpacking and compiling do: create, one write(2) of 4 KiB, close."""

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
    return {"": arena.probe("write", shuffled(numbered(COUNT)), size=4096)}


WORKLOAD = Workload(
    name="write-new",
    family="Files",
    title="create, write 4 KiB and close",
    parts={"": MICROSECONDS},
    variants=(Variant({}, quick=("tmpfs",), seconds=0.5),),
    lay=lay,
    measure=measure,
)
