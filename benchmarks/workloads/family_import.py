"""Taking a real image of some 300 MB into an empty store: Django on Python, GCC on Debian.

The images are those of `tools/images --family`. `peak` is the most memory that the importing process
had resident.
"""

from benchmarks import stores
from benchmarks.arena import Arena
from benchmarks.family import archives
from benchmarks.forge import Site
from benchmarks.workload import KIB, MILLISECONDS, Measurement, Parameters, Variant, Workload, text
from benchmarks.workloads.store_import import empty_store


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The image as an OCI layout."""
    name = text(parameters, "image")
    archives.lay_out_family([f"family-{name}"], site.layer("layout"))
    return ["layout"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One import."""
    tag = f"family-{text(parameters, 'image')}"
    with empty_store(arena) as store:
        finished = store.take_in(arena.layers.paths()[0], tag)
    wall_s = sum(each.wall_s for each in finished)
    cpu_s = sum(each.cpu_s for each in finished)
    peak = max(each.peak for each in finished) / 1024
    return {
        "time": Measurement(wall_s * 1e3, wall_s, 1, caller_cpu_s=cpu_s),
        "peak": Measurement(peak, wall_s, 1),
    }


WORKLOAD = Workload(
    name="family-import",
    family="Store",
    title="import a real image",
    parts={"time": MILLISECONDS, "peak": KIB},
    variants=tuple(
        Variant({"image": image}, ("disk",), seconds=12.0, space=2 << 30, on_request=True)
        for image in ("django", "gcc")
    ),
    lay=lay,
    measure=measure,
    mounts_itself=True,
    takes=stores.takes,
)
