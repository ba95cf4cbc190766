"""Opening a file that is known already and closing it again: the toll on every short read."""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload

FILES = 1000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """Files of 1 KiB."""
    site.flat(numbered(FILES), 1024)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Two passes after one that does not count."""
    return {"": arena.probe("open", shuffled(numbered(FILES)), warm=1, passes=2)}


WORKLOAD = Workload(
    name="open-close",
    family="Files",
    title="open and close a lower file",
    parts={"": MICROSECONDS},
    variants=(Variant({}, quick=("tmpfs",)),),
    lay=lay,
    measure=measure,
    changes=False,
)
