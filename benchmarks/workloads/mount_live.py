"""Mounting: from starting the mount command until the root of the mount answers.

What every `podman run` waits for. A daemon that serves many mounts is ended before each sample for
`daemon=fresh`, and left running for `daemon=running`; for the others there is no difference.
"""

from benchmarks.arena import Arena
from benchmarks.forge import Site, numbered
from benchmarks.workload import (
    MILLISECONDS,
    Measurement,
    Parameters,
    Variant,
    Workload,
    integer,
    mounts,
    text,
)


def lay(site: Site, parameters: Parameters) -> list[str]:
    """One file in each layer."""
    layers = integer(parameters, "layers")
    return site.spread(numbered(layers), layers)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """One mount, as a command."""
    if text(parameters, "daemon") == "fresh":
        arena.mounter.end_daemons()
        return {"": mount_once(arena)}
    with arena.mounter.mounted(arena.spec, arena.layers, arena.place):
        return {"": mount_once(arena)}


def mount_once(arena: Arena) -> Measurement:
    """Mounts and unmounts; the measurement is of the first half."""
    with arena.mounter.mounted(arena.spec, arena.layers, arena.place) as live:
        return Measurement(
            value=live.mount_s * 1e3,
            wall_s=live.mount_s,
            operations=1,
            caller_cpu_s=live.mount_cpu_s,
        )


WORKLOAD = Workload(
    name="mount",
    family="Mounting",
    title="time to a live mount",
    parts={"": MILLISECONDS},
    variants=tuple(
        Variant({"daemon": daemon, "layers": layers}, ("disk",), quick, 0.3)
        for daemon, layers, quick in (
            ("fresh", 1, ("disk",)),
            ("fresh", 10, ()),
            ("fresh", 100, ()),
            ("fresh", 400, ()),
            ("running", 1, ()),
            ("running", 10, ()),
            ("running", 100, ()),
            ("running", 400, ()),
        )
    ),
    lay=lay,
    measure=measure,
    axis="layers",
    mounts_itself=True,
    takes=mounts,
)
