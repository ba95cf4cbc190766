"""`du -s` over an image, cold: names, types and the attributes of every single file."""

from benchmarks import image_tree
from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload


def lay(site: Site, parameters: Parameters) -> list[str]:
    """A tree like an image's."""
    return image_tree.lay_image(site)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """du(1), as a command."""
    arena.drop_caches()
    return {"": arena.command(["du", "-s", "."])}


WORKLOAD = Workload(
    name="du",
    family="Real work",
    title="du over an image, cold",
    parts={"": MILLISECONDS},
    variants=(Variant({}, quick=("tmpfs",), seconds=0.6, space=256 << 20),),
    lay=lay,
    measure=measure,
    changes=False,
)
