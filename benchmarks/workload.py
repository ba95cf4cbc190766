"""What a workload is: the layers it needs, the parameters it varies, and how one sample is taken.

Each workload lives in a file of its own in `workloads/`; this module gives it the words.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.results import Parameter
from benchmarks.subjects import KERNEL, PROGRAM, STORE, Spec

if TYPE_CHECKING:
    from benchmarks.arena import Arena
    from benchmarks.forge import Site

Parameters = Mapping[str, Parameter]

MICROSECONDS = "µs"
MILLISECONDS = "ms"
MICROSECONDS_PER_MIB = "µs/MiB"
KIB = "KiB"
BYTES = "B"

SECONDS_OF = {MICROSECONDS: 1e-6, MILLISECONDS: 1e-3}


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting of a workload's parameters.

    `bases` are the file systems it runs on unless the user names others, `quick` those of a quick
    run; `seconds` a guess at one sample without mounting, for the estimate; `space` the bytes its
    layers, an upper and a plain copy may need together on the base. `read_only` mounts have no
    upper; the kernel's overlayfs then asks for two layers at least. `on_request` ones are taken
    only where they are named: they need what is not built on the way.
    """

    parameters: dict[str, Parameter]
    bases: tuple[str, ...] = ("tmpfs", "disk")
    quick: tuple[str, ...] = ()
    seconds: float = 0.2
    space: int = 64 << 20
    read_only: bool = False
    on_request: bool = False


def works_in_a_tree(spec: Spec) -> bool:
    """A mount or the plain directory."""
    return spec.kind != STORE


def mounts(spec: Spec) -> bool:
    """Something that is mounted."""
    return spec.kind in (KERNEL, PROGRAM)


@dataclass(slots=True)
class Measurement:
    """One sample: `value` in the unit of its part; the rest as in `results.Sample`."""

    value: float
    wall_s: float
    operations: int
    daemon_cpu_s: float | None = None
    caller_cpu_s: float | None = None
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload.

    `parts` maps the name of each value that a sample gives to its unit; a workload with a single
    value names it "". `lay` builds the lower layers below a site and returns their names, top
    first; `measure` takes one sample in a fresh mount and returns a measurement for each part.
    `changes` says whether it changes the tree, so that a plain directory must be copied anew.
    `mounts_itself` is for those whose subject is the mounting: they get no live mount. `takes` says
    which subjects can do it at all; the others are not asked.
    """

    name: str
    family: str
    title: str
    parts: dict[str, str]
    variants: tuple[Variant, ...]
    lay: "Callable[[Site, Parameters], list[str]]"
    measure: "Callable[[Arena, Parameters], dict[str, Measurement]]"
    axis: str = ""
    changes: bool = True
    mounts_itself: bool = False
    takes: Callable[[Spec], bool] = works_in_a_tree


def integer(parameters: Parameters, name: str) -> int:
    """The parameter `name`, which is a number."""
    value = parameters[name]
    assert isinstance(value, int)
    return value


def text(parameters: Parameters, name: str) -> str:
    """The parameter `name`, which is a word."""
    value = parameters[name]
    assert isinstance(value, str)
    return value
