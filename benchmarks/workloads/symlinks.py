"""Making symbolic links and reading them: library sonames, node_modules/.bin, alternatives.

Reading is of links in a lower layer, cold.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered, shuffled
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload, text

LINKS = 500


def lay(site: Site, parameters: Parameters) -> list[str]:
    """Links to read, or a place for new ones."""
    site.flat([], 0)
    if text(parameters, "call") == "readlink":
        for name in numbered(LINKS):
            (site.layer("0") / "d" / name).symlink_to("a/target/of/some/length")
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """Each link once."""
    call = text(parameters, "call")
    if call == "readlink":
        arena.drop_caches()
    return {"": arena.probe(call, shuffled(numbered(LINKS)))}


WORKLOAD = Workload(
    name="symlinks",
    family="Names",
    title="symbolic links",
    parts={"": MICROSECONDS},
    variants=(Variant({"call": "symlink"}), Variant({"call": "readlink"})),
    lay=lay,
    measure=measure,
)
