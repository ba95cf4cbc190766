"""Unpacking a source tree into the mount: what every image build and every checkout begins with.

The tree is the standard library of the Python that runs this, packed without compression.
"""

import sysconfig
import tarfile
from pathlib import Path

from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload

FILES_AT_MOST = 1500
LEFT_OUT = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib"}


def source_files() -> list[Path]:
    """The library's modules in a fixed order, relative to its directory."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [
        path.relative_to(library)
        for path in library.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(library).parts)
    ]
    return sorted(found)[:FILES_AT_MOST]


def pack(archive: Path) -> None:
    """Writes the modules as a tar archive that any tar reads."""
    library = Path(sysconfig.get_paths()["stdlib"])
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in source_files():
            tar.add(library / path, f"source/{path}")


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The archive lies in the lower layer, the tree goes beside it."""
    pack(site.layer("0") / "source.tar")
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """tar -x, as a command."""
    return {"": arena.command(["tar", "-xf", "source.tar"])}


WORKLOAD = Workload(
    name="untar",
    family="Real work",
    title="untar a source tree",
    parts={"": MILLISECONDS},
    variants=(Variant({}, quick=("tmpfs",), seconds=0.8),),
    lay=lay,
    measure=measure,
)
