"""Changing the mode of a big lower file: `chmod -R` or `chown -R` over an image.

A union that copies data up for a change of metadata pays for the whole file; metacopy is the way
round it.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import MICROSECONDS, Measurement, Parameters, Variant, Workload
from benchmarks.workloads import copyup


def lay(site: Site, parameters: Parameters) -> list[str]:
    """One file, full of data."""
    return copyup.lay(site, parameters)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One chmod(2)."""
    return {"": arena.probe("chmod", ["f000000"])}


WORKLOAD = Workload(
    name="chmod-big",
    family="Copy-up",
    title="chmod of a big lower file",
    parts={"": MICROSECONDS},
    variants=(
        Variant({"bytes": 16 << 20}, ("disk",), space=100 << 20),
        Variant({"bytes": 256 << 20}, ("disk", "xfs"), seconds=1.5, space=1 << 30),
    ),
    lay=lay,
    measure=measure,
    axis="bytes",
)
