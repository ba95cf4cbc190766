"""Walking a whole tree and asking for the attributes of everything: backup, `find`, `du`, `chown -R`.

A tree of 4,000 files in 200 directories, cold, per entry: listing, lstat(2) and descending.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, integer

DIRECTORIES = 200
FILES = 20


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The directories exist in every layer, the files are dealt out."""
    layers = integer(parameters, "layers")
    files = [f"{d}/{f}" for d in numbered(DIRECTORIES, "d") for f in numbered(FILES)]
    for number in range(layers):
        for directory in numbered(DIRECTORIES, "d"):
            (site.layer(str(number)) / "d" / directory).mkdir(parents=True)
        site.flat(files[number::layers], 0, layer=str(number))
    return [str(number) for number in range(layers)]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One walk."""
    arena.drop_caches()
    return {"": arena.probe("walk")}


WORKLOAD = Workload(
    name="walk",
    family="Directories",
    title="walk a tree with lstat, per entry",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"layers": 1}, quick=("tmpfs",)),
        Variant({"layers": 10}),
        Variant({"layers": 100}, seconds=0.4, space=128 << 20),
    ),
    lay=lay,
    measure=measure,
    changes=False,
)
