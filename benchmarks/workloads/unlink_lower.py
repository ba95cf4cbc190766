"""Deleting files of a lower layer: `apt-get clean`, `rm -rf` in a derived image. Leaves whiteouts."""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload

FILES = 500


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The files, over ten layers."""
    return site.spread(numbered(FILES), 10)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Each file once."""
    return {"": arena.probe("unlink", shuffled(numbered(FILES)))}


WORKLOAD = Workload(
    name="unlink-lower",
    family="Names",
    title="unlink a lower file (whiteout)",
    parts={"": MICROSECONDS},
    variants=(Variant({}, quick=("tmpfs",), seconds=0.3),),
    lay=lay,
    measure=measure,
)
