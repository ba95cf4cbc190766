"""Finding names again: what stays in the kernel's caches, and for how long it is believed.

Each name was looked up once before the clock starts. A file system that gives names and
attributes no time limit is not asked at all; one that does is asked for each.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, integer

NAMES = 2000
PASSES = 10


def lay(site: Site, parameters: Parameters) -> list[str]:
    """One directory over many layers."""
    return site.spread(numbered(NAMES), integer(parameters, "layers"))


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Ten lstats of each, after one that does not count."""
    return {"": arena.probe("stat", shuffled(numbered(NAMES)), warm=1, passes=PASSES)}


WORKLOAD = Workload(
    name="lookup-hot",
    family="Lookup",
    title="lstat of a name, hot",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"layers": 1}, quick=("tmpfs",)),
        Variant({"layers": 10}),
        Variant({"layers": 100}),
        Variant({"layers": 400}),
    ),
    lay=lay,
    measure=measure,
    changes=False,
)
