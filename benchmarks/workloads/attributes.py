"""Changing one attribute of a file already in the upper: chmod, chown, times, truncate.

What package managers do to every file they have just written.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, text

FILES = 1000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """An empty directory: the files are made through the mount."""
    (site.layer("0") / "d").mkdir()
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One change of each file."""
    names = shuffled(numbered(FILES))
    arena.untimed("make", names, size=1024)
    call = text(parameters, "call")
    size = 100 if call == "truncate" else 0
    return {"": arena.probe(call, names, size=size)}


WORKLOAD = Workload(
    name="attributes",
    family="Attributes",
    title="change an attribute of an upper file",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"call": "chmod"}, quick=("tmpfs",), seconds=0.4),
        Variant({"call": "chown"}, seconds=0.4),
        Variant({"call": "utimens"}, seconds=0.4),
        Variant({"call": "truncate"}, seconds=0.4),
    ),
    lay=lay,
    measure=measure,
)
