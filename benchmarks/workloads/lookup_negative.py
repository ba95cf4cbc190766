"""Asking for names that do not exist: search paths of compilers, linkers and interpreters.

A union has to ask every layer before it can say no. Cold: each name once, caches dropped. Hot:
ten times more after that, which shows whether a no is remembered.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import (
    MICROSECONDS,
    Measurement,
    Parameters,
    Variant,
    Workload,
    integer,
    text,
)

NAMES = 2000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """Directories full of other names."""
    if "names" in parameters:
        site.flat(numbered(integer(parameters, "names")), 0)
        return ["0"]
    return site.spread(numbered(NAMES), integer(parameters, "layers"))


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """An lstat of each that must fail with ENOENT."""
    absent = shuffled(numbered(NAMES, "absent"))
    if text(parameters, "cache") == "hot":
        return {"": arena.probe("absent", absent, warm=1, passes=10)}
    arena.drop_caches()
    return {"": arena.probe("absent", absent)}


WORKLOAD = Workload(
    name="lookup-negative",
    family="Lookup",
    title="lstat of a name that does not exist",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"cache": "cold", "layers": 1}, quick=("tmpfs",)),
        Variant({"cache": "cold", "layers": 10}),
        Variant({"cache": "cold", "layers": 100}, quick=("tmpfs",)),
        Variant({"cache": "cold", "layers": 400}),
        Variant({"cache": "cold", "names": 10}),
        Variant({"cache": "cold", "names": 1000}),
        Variant({"cache": "cold", "names": 100_000}, seconds=0.4, space=512 << 20),
        Variant({"cache": "hot", "layers": 1}),
        Variant({"cache": "hot", "layers": 100}),
    ),
    lay=lay,
    measure=measure,
    changes=False,
)
