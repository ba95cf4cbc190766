"""Extended attributes: labels, capabilities and ACLs, asked for by ls, cp -a, tar and rsync.

On files made through the mount; reading is of a value set just before.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, text

FILES = 500


def lay(site: Site, parameters: Parameters) -> list[str]:
    """An empty directory: the files are made through the mount."""
    site.flat([], 0)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One call on each file."""
    names = shuffled(numbered(FILES))
    call = text(parameters, "call")
    arena.untimed("make", names)
    if call != "setxattr":
        arena.probe("setxattr", names)
    return {"": arena.probe(call, names)}


WORKLOAD = Workload(
    name="xattrs",
    family="Attributes",
    title="extended attribute of an upper file",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"call": "setxattr"}, seconds=0.3),
        Variant({"call": "getxattr"}, seconds=0.4),
        Variant({"call": "listxattr"}, seconds=0.4),
    ),
    lay=lay,
    measure=measure,
)
