"""What the machine itself costs just now: a system call, and waking another process and being woken.

Measured with every subject like any other row, so that it shows whether the machine treated them
alike, and between two files whether it is the machine that changed.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, text

CALLS = 5000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """Nothing of note."""
    site.flat([], 0)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """The helper with itself."""
    return {"": arena.probe(text(parameters, "what"), numbered(CALLS))}


WORKLOAD = Workload(
    name="machine",
    family="Machine",
    title="the machine itself",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"what": "syscall"}, ("tmpfs",), seconds=0.05),
        Variant({"what": "switch"}, ("tmpfs",), quick=("tmpfs",), seconds=0.1),
    ),
    lay=lay,
    measure=measure,
    changes=False,
)
