"""Taking in an image that was built again: one layer moved, one added, the rest known already.

What the second image costs in time and in disk space, with the first one in the store.
"""

from benchmarks import stores
from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import KIB, MILLISECONDS, Measurement, Parameters, Variant, Workload
from benchmarks.workloads import store_import


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The two images."""
    return store_import.lay(site, parameters)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """The second import."""
    with store_import.empty_store(arena) as store:
        store_import.imported(arena, store, "first")
        return store_import.imported(arena, store, "second")


WORKLOAD = Workload(
    name="store-dedupe",
    family="Store",
    title="import an image built again",
    parts={"time": MILLISECONDS, "disk": KIB},
    variants=(Variant({}, ("disk",), seconds=5.0, space=512 << 20),),
    lay=lay,
    measure=measure,
    mounts_itself=True,
    takes=stores.takes,
)
