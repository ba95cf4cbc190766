"""Finding names that nobody has asked for yet: the first `ls -l`, import or compile in a container.

Kernel caches of names and inodes are dropped, then each name is looked up once with lstat(2), in
an order that no readahead can guess. Over layers: all names are in one directory that merges all
of them. Over names: one layer, directories of that many names, so that each lookup of a small
directory's name also carries its share of finding the directory.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, integer

LOOKUPS = 2000


def paths(names: int) -> list[str]:
    """Names of files in as many directories of `names` as give enough lookups."""
    directories = max(1, LOOKUPS // names)
    if directories == 1:
        return numbered(names)
    return [f"{d}/{f}" for d in numbered(directories, "d") for f in numbered(names)]


def lay(site: Site, parameters: Parameters) -> list[str]:
    """One directory over many layers, or many names in the directories of one."""
    if "layers" in parameters:
        return site.spread(numbered(LOOKUPS), integer(parameters, "layers"))
    names = integer(parameters, "names")
    for directory in {path.rpartition("/")[0] for path in paths(names)}:
        site.flat(numbered(names), 0, inside=f"d/{directory}".rstrip("/"))
    return ["0"]


def chosen(parameters: Parameters) -> list[str]:
    """The names that are looked up, in their order."""
    if "layers" in parameters:
        return shuffled(numbered(LOOKUPS))
    return shuffled(paths(integer(parameters, "names")), LOOKUPS)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One lstat of each."""
    arena.drop_caches()
    return {"": arena.probe("stat", chosen(parameters))}


WORKLOAD = Workload(
    name="lookup-cold",
    family="Lookup",
    title="lstat of a name, cold",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"layers": 1}, quick=("tmpfs",)),
        Variant({"layers": 10}),
        Variant({"layers": 100}, quick=("tmpfs",)),
        Variant({"layers": 400}),
        Variant({"names": 10}),
        Variant({"names": 100}),
        Variant({"names": 1000}),
        Variant({"names": 10_000}),
        Variant({"names": 100_000}, seconds=0.5, space=512 << 20),
    ),
    lay=lay,
    measure=measure,
    changes=False,
)
