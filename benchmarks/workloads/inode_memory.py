"""What it costs to remember a file: memory after so many of them have been looked up, per file.

The sum of what the serving processes gained (PSS) and what the kernel's own objects gained (slab),
between two droppings of the caches; both are given apart as well. The kernel's part includes the
inodes of the layers below, and is of the whole machine: measure on a quiet one.
"""

from benchmarks import processes
from benchmarks.arena import Arena
from benchmarks.errors import CannotMeasure
from benchmarks.forge import Site, numbered
from benchmarks.workload import BYTES, Measurement, Parameters, Variant, Workload, integer

PER_DIRECTORY = 1000


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The files, a thousand in each directory."""
    for directory in numbered(integer(parameters, "files") // PER_DIRECTORY, "d"):
        site.flat(numbered(PER_DIRECTORY), 0, inside=f"d/{directory}")
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One walk with lstat."""
    arena.drop_caches()
    daemon = processes.memory(arena.mount.pids)
    slab = processes.kernel_slab_bytes()
    walked = arena.probe("walk")
    gained = processes.memory(arena.mount.pids).pss - daemon.pss
    slab = processes.kernel_slab_bytes() - slab
    files = integer(parameters, "files")
    if gained + slab <= 0:
        raise CannotMeasure("less memory is used than before: the machine is too busy to tell")
    return {
        "": Measurement(
            value=(gained + slab) / files,
            wall_s=walked.wall_s,
            operations=files,
            daemon_cpu_s=walked.daemon_cpu_s,
            caller_cpu_s=walked.caller_cpu_s,
            extra={"daemon_b": gained / files, "kernel_b": slab / files},
        )
    }


WORKLOAD = Workload(
    name="inode-memory",
    family="Mounting",
    title="memory per cached inode",
    parts={"": BYTES},
    variants=(
        Variant({"files": 10_000}, ("disk",), seconds=1.0),
        Variant({"files": 100_000}, ("disk",), seconds=6.0, space=512 << 20),
        Variant({"files": 1_000_000}, ("disk",), seconds=60.0, space=4 << 30),
    ),
    lay=lay,
    measure=measure,
    axis="files",
    changes=False,
)
