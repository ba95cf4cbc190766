"""Reading many small files once each: starting an interpreter, a web server's static files.

Open, one read(2) of the whole file, close. Names are cold; the data is in the page cache below
the union, as it is when another container has read it before. `cache=filled`: everything was read
through the mount before, as by an interpreter that is started again.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, integer

FILES = 1000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """Files of that many bytes over ten layers."""
    return site.spread(numbered(FILES), 10, integer(parameters, "bytes"))


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Each file once."""
    arena.drop_caches()
    size = integer(parameters, "bytes")
    warm = int("cache" in parameters)
    return {"": arena.probe("read", shuffled(numbered(FILES)), size=size, warm=warm)}


WORKLOAD = Workload(
    name="read-small",
    family="Files",
    title="open, read and close a lower file",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"bytes": 1024}, quick=("tmpfs",)),
        Variant({"bytes": 16_384}),
        Variant({"bytes": 131_072}, space=600 << 20),
        Variant({"cache": "filled", "bytes": 1024}),
        Variant({"cache": "filled", "bytes": 16_384}),
        Variant({"cache": "filled", "bytes": 131_072}, space=600 << 20),
    ),
    lay=lay,
    measure=measure,
    changes=False,
)
