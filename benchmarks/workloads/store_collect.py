"""Removing one of two images and collecting what nothing refers to any more: cleaning a build host.

Half of what the removed image has is also in the image that stays.
"""

from benchmarks import commands, stores
from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload
from benchmarks.workloads import store_import


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The two images."""
    return store_import.lay(site, parameters)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """rm and gc."""
    with store_import.empty_store(arena) as store:
        for tag in ("first", "second"):
            store_import.imported(arena, store, tag)
        done = [
            commands.must(commands.run(argv))
            for argv in (store.layerstore("rm", "second"), store.layerstore("gc"))
        ]
    wall_s = sum(each.wall_s for each in done)
    return {"": Measurement(wall_s * 1e3, wall_s, 1, None, sum(each.cpu_s for each in done))}


WORKLOAD = Workload(
    name="store-collect",
    family="Store",
    title="remove an image and collect",
    parts={"": MILLISECONDS},
    variants=(Variant({}, ("disk",), seconds=6.0, space=512 << 20),),
    lay=lay,
    measure=measure,
    mounts_itself=True,
    takes=stores.is_ours,
)
