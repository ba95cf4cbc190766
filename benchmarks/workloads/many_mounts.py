"""Many mounts at once, as on a container host: what one more of them costs in time and memory.

Each mount has ten layers and is used a little (one listing, ten lookups). Time is per mount, one
after another; memory is what the serving processes hold together, shared pages counted once
(PSS), per mount.
"""

import os
from contextlib import ExitStack

from benchmarks import processes
from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered
from benchmarks.mounts import Mounted
from benchmarks.workload import (
    KIB,
    MILLISECONDS,
    Measurement,
    Parameters,
    Variant,
    Workload,
    integer,
    mounts,
)

FILES = 100


def lay(site: Site, parameters: Parameters) -> list[str]:
    """Ten layers, the same for all mounts."""
    return site.spread(numbered(FILES), 10, 1024)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """That many mounts, used, weighed and unmounted."""
    arena.mounter.end_daemons()
    count = integer(parameters, "mounts")
    with ExitStack() as stack:
        live = [
            stack.enter_context(arena.mounter.mounted(arena.spec, arena.layers, arena.place))
            for _ in range(count)
        ]
        for mount in live:
            use(mount)
        pids = sorted({pid for mount in live for pid in mount.pids})
        weight = processes.memory(pids)
        seconds = sum(mount.mount_s for mount in live)
        time = Measurement(
            value=seconds * 1e3 / count,
            wall_s=seconds,
            operations=count,
            daemon_cpu_s=processes.cpu_seconds(pids),
            caller_cpu_s=sum(mount.mount_cpu_s for mount in live),
        )
        memory = Measurement(
            value=weight.pss / 1024 / count,
            wall_s=seconds,
            operations=count,
            extra={"rss_kib": weight.rss / 1024 / count, "processes": float(len(pids))},
        )
    return {"time": time, "memory": memory}


def use(mount: Mounted) -> None:
    """A little of what a container does first."""
    os.listdir(mount.root / "d")
    for name in numbered(10):
        os.stat(mount.root / "d" / name)


WORKLOAD = Workload(
    name="many-mounts",
    family="Mounting",
    title="many mounts at once, per mount",
    parts={"time": MILLISECONDS, "memory": KIB},
    variants=(
        Variant({"mounts": 1}, ("tmpfs",), seconds=0.3),
        Variant({"mounts": 10}, ("tmpfs",), seconds=1.0),
        Variant({"mounts": 100}, ("tmpfs",), seconds=8.0),
        Variant({"mounts": 300}, ("tmpfs",), seconds=25.0),
    ),
    lay=lay,
    measure=measure,
    axis="mounts",
    mounts_itself=True,
    takes=mounts,
)
