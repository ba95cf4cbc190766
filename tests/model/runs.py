"""One run of a comparison: what its seed decides, carrying it out, and shortening what failed."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from tests.model import acl, compare, layers
from tests.model.compare import Comparison, Disagreement, Subject
from tests.model.generate import GROWING, KINDS, SHORT_NAMES, Features, Generator, Operation
from tests.model.layers import WHITEOUT_FORMS, Layer
from tests.model.mounts import Alternating, Device, FuseOverlayfs, Imaged, Kernel, Ours
from tests.model.verbs import Verbs

TREE_MAX = 45
"""Names in the tree above which nothing is added, so that looking at all of it stays quick."""

SHRINKING = ("unlink", "rmdir", "rename", "write")


@dataclass(frozen=True, slots=True)
class Rules:
    """What all subjects of a comparison can do; `whiteouts`: how a layer may say that a name is
    gone; `weights`: of kinds of operation, where not `KINDS`'s; `sockets`: lower layers may have some."""

    features: Features
    whiteouts: tuple[str, ...] = WHITEOUT_FORMS
    weights: Mapping[str, float] = field(default_factory=dict)
    sockets: bool = True


ALL = Rules(Features())
AS_THE_KERNEL = Rules(
    Features(zero_devices=False, rename_whiteout=False, names=SHORT_NAMES), ("device",)
)
"""Without what the kernel's overlayfs refuses or gets wrong (SEMANTICS.md names it)."""

SERVED = replace(AS_THE_KERNEL, weights={"remount": 0.5, "rotate": 0.3})
"""The same where a daemon must be started for every mount, which takes longer than 20 operations."""

OVER_IMAGES = replace(SERVED, weights={"remount": 0.5, "rotate": 0.0}, sockets=False)
"""No archive that an image comes from has a socket; and an upper that becomes a lower layer may have one."""

BY_TURNS = replace(AS_THE_KERNEL, weights={"remount": 5, "rotate": 0.3})


@dataclass(frozen=True, slots=True)
class Plan:
    """What the seed of a run decides. `kinds`: a run often leaves some kinds of operation out."""

    seed: int
    stack: list[Layer]
    umask: int
    check_every: int
    features: Features
    kinds: dict[str, float]

    def comparison(self, make: Iterable[Make]) -> Comparison:
        return Comparison(self.stack, list(make), self.features, self.umask)

    def look(self, comparison: Comparison, at: int) -> None:
        """Compare after operation number `at`: attributes always, all of it at times."""
        if at % self.check_every == 0:
            comparison.check()
        else:
            comparison.glance()

    def draw(self, generator: Generator, chance: random.Random) -> Operation:
        kind = chance.choices(list(self.kinds), list(self.kinds.values()))[0]
        if kind in GROWING and sum(1 for _ in generator.tree.walk()) >= TREE_MAX:
            kind = chance.choice(SHRINKING)
        return generator.of_kind(kind, chance)


Make = Callable[[list[Layer], int], Subject]


def plan(seed: int, rules: Rules) -> Plan:
    chance = random.Random(seed)
    features = rules.features
    count = chance.randint(1, 4)
    stack = layers.random_stack(chance, count, features.names, rules.whiteouts)
    if not rules.sockets:
        layers.drop_sockets(stack)
    layers.drop_stray_whiteouts(stack, as_the_kernel=rules.whiteouts == ("device",))
    umask = chance.choice([0, 0, 0o022, 0o077])
    if umask and not features.umask_and_default_acls:
        features = replace(features, default_acls=False)
        for layer in stack:
            for entry in layer.values():
                entry.xattrs.pop(acl.DEFAULT, None)
    kinds = {kind: rules.weights.get(kind, weight) for kind, (weight, _) in KINDS.items()}
    if chance.random() < 0.3 and "rotate" not in rules.weights:
        kinds["rotate"] = 3.0
    if chance.random() < 0.5:
        for kind in chance.sample(sorted(kinds), chance.randint(1, len(kinds) - 8)):
            if kind not in rules.weights:
                del kinds[kind]
    return Plan(seed, stack, umask, chance.choice([5, 10, 20]), features, kinds)


Kind = Callable[[bytes, list[Layer], int], Subject]

KINDS_OF_SUBJECT: dict[str, Kind] = {
    "kernel": Kernel,
    "fuse-overlayfs": FuseOverlayfs,
    "mounted": Ours,
    "alternating": Alternating,
    "device": Device,
    "imaged": Imaged,
    "verbs": Verbs,
}


def maker(kind: Kind, scratch: str) -> Make:
    """A function that makes a subject in a directory of its own below `scratch`."""

    def make(stack: list[Layer], umask: int) -> Subject:
        return kind(os.fsencode(tempfile.mkdtemp(dir=scratch)), stack, umask)

    return make


def makers(names: Iterable[str], scratch: str) -> list[Make]:
    return [maker(KINDS_OF_SUBJECT[name], scratch) for name in names]


def one_run(plan: Plan, make: list[Make], length: int) -> tuple[list[Operation], str | None]:
    """Operations done, and what disagreed."""
    chance = random.Random(~plan.seed)
    comparison = plan.comparison(make)
    try:
        comparison.check()
        for at in range(length):
            comparison.run(plan.draw(comparison.generator, chance))
            plan.look(comparison, at)
        comparison.check()
    except Disagreement as disagreement:
        return comparison.done, str(disagreement)
    finally:
        comparison.end()
    return comparison.done, None


def explain(plan: Plan, make: list[Make], done: list[Operation], seconds: float = 60) -> str:
    """The layers and the shortest failing sequence that is found in `seconds`."""

    def again() -> Comparison:
        return plan.comparison(make)

    short = compare.shorten(again, done, seconds)
    lines = [f"umask {plan.umask:#o}, layers, top first:"]
    for layer in plan.stack:
        lines += [
            "  {",
            *(f"    {path!r}: {entry},"[:400] for path, entry in layer.items()),
            "  },",
        ]
    lines += ["operations:", *(f"    {operation}" for operation in short)]
    lines.append(compare.replay(again, short) or "(does not fail when every step is checked)")
    return "\n".join(lines)
