"""From an image in the store to a live writable mount, as a command: `overlayfs-py mount IMAGE MNT`.

The image has the same 4,000 files however many layers they are dealt out over; the daemon runs already.
"""

from benchmarks import oci_layout, stores
from benchmarks.arena import Arena
from benchmarks.errors import CannotMeasure
from benchmarks.forge import Site
from benchmarks.workload import (
    MILLISECONDS,
    Measurement,
    Parameters,
    Variant,
    Workload,
    integer,
)

FILES = 4000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The image."""
    count = integer(parameters, "layers")
    content = list(oci_layout.files(1, FILES).items())
    oci_layout.write(
        site.layer("layout"), {"image": [dict(content[n::count]) for n in range(count)]}
    )
    return ["layout"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One mount of a known image, beside one that keeps the daemon there."""
    layers = arena.layers.directory
    store = stores.kept(arena.spec, layers / "layout", ["image"], layers / "stores").directory
    with (
        arena.mounter.image(arena.spec, store, "image", arena.place),
        arena.mounter.image(arena.spec, store, "image", arena.place) as mount,
    ):
        if not (mount.root / "usr/lib").is_dir():
            raise CannotMeasure("the image that was mounted is empty")
    return {"": Measurement(mount.mount_s * 1e3, mount.mount_s, 1, None, mount.mount_cpu_s)}


WORKLOAD = Workload(
    name="store-mount",
    family="Store",
    title="mount an image of the store",
    parts={"": MILLISECONDS},
    variants=tuple(
        Variant({"layers": layers}, ("disk",), seconds=0.5, space=512 << 20)
        for layers in (1, 30, 400)
    ),
    lay=lay,
    measure=measure,
    mounts_itself=True,
    takes=stores.is_ours,
)
