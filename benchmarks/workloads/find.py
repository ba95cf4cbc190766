"""`find -type f` over an image, cold: scanners, package queries, cron jobs inside containers.

Needs names and types, not attributes, where directory listings carry the type.
"""

from benchmarks import image_tree
from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload


def lay(site: Site, parameters: Parameters) -> list[str]:
    """A tree like an image's."""
    return image_tree.lay_image(site)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """find(1), as a command."""
    arena.drop_caches()
    return {"": arena.command(["find", ".", "-type", "f"])}


WORKLOAD = Workload(
    name="find",
    family="Real work",
    title="find over an image, cold",
    parts={"": MILLISECONDS},
    variants=(Variant({}, seconds=0.5, space=256 << 20),),
    lay=lay,
    measure=measure,
    changes=False,
)
