"""Renaming directories, which dpkg and npm do to swap a whole tree in.

Of the upper: an empty one made just before. Of a lower, with ten files in it: the kernel refuses
with EXDEV unless redirect_dir is on, and so does fuse-overlayfs; the caller then copies it all.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, text

DIRECTORIES = 200


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The directories with their files, or only the place for them."""
    site.flat([], 0)
    if text(parameters, "of") == "lower":
        for directory in numbered(DIRECTORIES):
            site.flat(numbered(10), 0, inside=f"d/{directory}")
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Each name to one that is free."""
    names = shuffled(numbered(DIRECTORIES))
    if text(parameters, "of") == "upper":
        for name in names:
            (arena.root / "d" / name).mkdir()
    return {"": arena.probe("rename", names)}


WORKLOAD = Workload(
    name="rename-directory",
    family="Names",
    title="rename a directory",
    parts={"": MICROSECONDS},
    variants=(Variant({"of": "upper"}), Variant({"of": "lower"})),
    lay=lay,
    measure=measure,
)
