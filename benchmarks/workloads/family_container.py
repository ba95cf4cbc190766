"""Containers of a real image: the first look at every file, a listing, the start of a Django program.

Ours mounts the image from the store; everybody else gets the same layers unpacked, as today's stores
keep them. Names are cold before each part but for `find-again`, which is a second container of the same
image beside the first. The image is that of `tools/images family-django`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import stores
from benchmarks.arena import Arena
from benchmarks.family import archives, unpacked
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload, mounts

IMAGE = "family-django"
FIND = ("find", ".", "-type", "f")
LISTING = ("ls", "-lR", ".")
PROGRAM = ("chroot", ".", "python3", "-c", "import django")


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The image as an OCI layout, and its layers unpacked, top first."""
    layout = site.layer("layout")
    archives.lay_out_family([IMAGE], layout)
    return unpacked.unpack(layout, IMAGE, site.directory)


@contextmanager
def container(arena: Arena) -> Iterator[None]:
    """Mounts the image with an upper of its own as what the arena works in."""
    if not stores.is_ours(arena.spec):
        with arena.mounter.mounted(arena.spec, arena.layers, arena.place) as arena.live:
            yield
        return
    layers = arena.layers.directory
    store = stores.kept(arena.spec, layers / "layout", [IMAGE], layers / "stores")
    with arena.mounter.image(arena.spec, store.directory, IMAGE, arena.place) as arena.live:
        yield


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """A container for each part, two at once for `find-again`."""
    measured = {}
    with container(arena):
        arena.drop_caches()
        measured["find"] = arena.command(FIND)
        with container(arena):
            measured["find-again"] = arena.command(FIND)
    for part, argv in (("ls", LISTING), ("django", PROGRAM)):
        with container(arena):
            arena.drop_caches()
            measured[part] = arena.command(argv)
    return measured


WORKLOAD = Workload(
    name="family-container",
    family="Store",
    title="a container of a real image",
    parts=dict.fromkeys(("find", "find-again", "ls", "django"), MILLISECONDS),
    variants=(Variant({}, ("disk",), seconds=8.0, space=3 << 30, on_request=True),),
    lay=lay,
    measure=measure,
    mounts_itself=True,
    takes=mounts,
)
