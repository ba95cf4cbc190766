"""Appending one byte to small lower files: configuration edited in a container, logs, databases of
package managers. Each append copies the file up first.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload

FILES = 500


def lay(site: Site, parameters: Parameters) -> list[str]:
    """Files of 1 KiB."""
    site.flat(numbered(FILES), 1024)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Open to append, write one byte, close, of each file once."""
    return {"": arena.probe("append", shuffled(numbered(FILES)), size=1)}


WORKLOAD = Workload(
    name="copyup-small",
    family="Copy-up",
    title="append a byte to a 1 KiB lower file",
    parts={"": MICROSECONDS},
    variants=(Variant({}, quick=("tmpfs",), seconds=0.3),),
    lay=lay,
    measure=measure,
)
