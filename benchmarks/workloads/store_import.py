"""Taking an image of 4,000 files in three layers into an empty store: what `podman pull` does after
the download. Time, and what the store then takes up on disk.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import oci_layout, scratch, stores
from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import KIB, MILLISECONDS, Measurement, Parameters, Variant, Workload


def lay(site: Site, parameters: Parameters) -> list[str]:
    """Two images: `first`, and `second`, built again later with one more layer."""
    base, packages, program = (
        oci_layout.files(seed, count) for seed, count in ((1, 2000), (2, 1500), (3, 500))
    )
    rebuilt = {name.replace("s2", "s9", 1): content for name, content in packages.items()}
    images = {"first": [base, packages, program]}
    images["second"] = [base, rebuilt, program, oci_layout.files(4, 100)]
    oci_layout.write(site.layer("layout"), images)
    return ["layout"]


@contextlib.contextmanager
def empty_store(arena: Arena) -> Iterator[stores.Store]:
    """A store with nothing in it, gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="store-", dir=arena.place))
    try:
        yield stores.Store(arena.spec, directory)
    finally:
        scratch.clear(directory)  # containers/storage leaves its directory mounted on itself


def imported(arena: Arena, store: stores.Store, tag: str) -> dict[str, Measurement]:
    """Takes `tag` in; time and growth."""
    before = store.disk_bytes()
    finished = store.take_in(arena.layers.paths()[0], tag)
    wall_s = sum(each.wall_s for each in finished)
    cpu_s = sum(each.cpu_s for each in finished)
    grown = (store.disk_bytes() - before) / 1024
    return {
        "time": Measurement(wall_s * 1e3, wall_s, 1, caller_cpu_s=cpu_s),
        "disk": Measurement(grown, wall_s, 1),
    }


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One import."""
    with empty_store(arena) as store:
        return imported(arena, store, "first")


WORKLOAD = Workload(
    name="store-import",
    family="Store",
    title="import an image",
    parts={"time": MILLISECONDS, "disk": KIB},
    variants=(Variant({}, ("disk",), seconds=3.0, space=512 << 20),),
    lay=lay,
    measure=measure,
    mounts_itself=True,
    takes=stores.takes,
)
