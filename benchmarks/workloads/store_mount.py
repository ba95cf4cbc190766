"""From an image in the store to a live writable mount, as a command: `overlayfs-py mount IMAGE MNT`."""

from pathlib import Path

from benchmarks import commands, scratch, stores
from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload
from benchmarks.workloads import store_import


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The images."""
    return store_import.lay(site, parameters)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One mount of a known image."""
    with store_import.empty_store(arena) as store:
        store.layerstore()  # says so where the subject has none
        store_import.imported(arena, store, "first")
        home = arena.place / "image"
        upper, work, root = home / "upper", home / "work", home / "merged"
        for directory in (home, upper, work, root):
            directory.mkdir()
        argv: list[str | Path] = [arena.spec.program, "mount", "--root", store.directory]
        argv += ["--upper", upper, "--work", work, "first", root]
        environment = arena.mounter.environment
        try:
            finished = commands.must(commands.run(argv, environment=environment))
            assert (root / "usr/lib").is_dir()
        finally:
            scratch.clear(home)
    return {"": Measurement(finished.wall_s * 1e3, finished.wall_s, 1, None, finished.cpu_s)}


WORKLOAD = Workload(
    name="store-mount",
    family="Store",
    title="mount an image of the store",
    parts={"": MILLISECONDS},
    variants=(Variant({}, ("disk",), seconds=4.0, space=512 << 20),),
    lay=lay,
    measure=measure,
    mounts_itself=True,
    takes=stores.is_ours,
)
