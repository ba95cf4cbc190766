"""What the store should reach on the family, and whether the samples of a run show it.

Owns the goals and how a figure is worked out from samples; measures nothing, prints nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.family.disk import DESCRIBING, Usage
from benchmarks.family.floor import Floor
from benchmarks.report import words
from benchmarks.results import Results
from benchmarks.statistics import Interval, paired_ratio

OURS, SKOPEO, KERNEL = "ours", "skopeo", "kernel"
IMPORT_MAX = 0.7
"""Of the time that `skopeo copy` into containers-storage takes in the same round."""
PEAK_MIB_MAX = 200
FIND_MAX = 1.5
"""Of the time on the kernel's overlayfs, first time."""
DESCRIBING_MAX = 0.08
"""Of the floor: indexes, database and tar metadata together."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure. `met` is None where there is no goal to meet."""

    what: str
    measured: str
    goal: str
    met: bool | None


def timings(results: Results) -> Iterator[Finding]:
    """The findings of whatever rows were sampled."""
    for image in ("django", "gcc"):
        row = f"family-import.time/image={image}@disk"
        yield from _ratio(
            f"import {image}, ours / skopeo copy into containers-storage",
            results.values(row, OURS),
            results.values(row, SKOPEO),
            f"<= {IMPORT_MAX}",
            lambda ratio: ratio.middle <= IMPORT_MAX,
        )
        peaks = results.values(f"family-import.peak/image={image}@disk", OURS).values()
        if peaks:
            mib = max(peaks) / 1024
            met = mib < PEAK_MIB_MAX
            yield Finding(
                f"import {image}, peak memory", f"{mib:.0f} MiB", f"< {PEAK_MIB_MAX} MiB", met
            )
    mounts = {
        layers: results.values(f"store-mount/layers={layers}@disk", OURS) for layers in (1, 30, 400)
    }
    for layers in (30, 400):
        yield from _ratio(
            f"mount an image of {layers} layers / of 1 layer",
            mounts[layers],
            mounts[1],
            "1 within noise",
            lambda ratio: ratio.holds(1.0) or abs(ratio.middle - 1.0) <= 0.05,
        )
    yield from _containers(results)


def _containers(results: Results) -> Iterator[Finding]:
    def values(part: str, subject: str) -> dict[int, float]:
        return results.values(f"family-container.{part}@disk", subject)

    against = "ours / kernel overlayfs on unpacked layers"
    yield from _ratio(
        f"find, first time, {against}",
        values("find", OURS),
        values("find", KERNEL),
        f"<= {FIND_MAX}",
        lambda ratio: ratio.middle <= FIND_MAX,
    )
    yield from _ratio(
        "find in a second container of the image / in the first, ours",
        values("find-again", OURS),
        values("find", OURS),
        "< 1",
        lambda ratio: ratio.middle < 1,
    )
    for part, what in (
        ("find-again", "find in a second container"),
        ("ls", "first ls -lR"),
        ("django", "first python3 -c 'import django'"),
    ):
        yield from _ratio(f"{what}, {against}", values(part, OURS), values(part, KERNEL))


def _ratio(
    what: str,
    ours: dict[int, float],
    theirs: dict[int, float],
    goal: str = "",
    met: Callable[[Interval], bool] | None = None,
) -> Iterator[Finding]:
    rounds = sorted(ours.keys() & theirs.keys())
    if not rounds:
        return
    ratio = paired_ratio([ours[n] for n in rounds], [theirs[n] for n in rounds])
    middles = sorted(ours[n] for n in rounds), sorted(theirs[n] for n in rounds)
    mine, other = (words.number(values[len(values) // 2]) for values in middles)
    measured = f"{words.number(ratio.middle)} ({words.span(ratio)}); {mine} / {other} ms"
    yield Finding(what, measured, goal, met(ratio) if met is not None else None)


def bytes_on_disk(floor: Floor, usage: dict[str, Usage], containers_storage: int) -> list[Finding]:
    """The findings of a store with the whole family in it.

    Args:
        floor: of the same images.
        usage: of our store.
        containers_storage: bytes on disk of containers-storage with the same images.
    """
    content = usage["objects"].bytes
    describing = sum(usage[part].bytes for part in DESCRIBING)
    share = describing / floor.bytes
    blocks = sum(part.blocks for part in usage.values())
    return [
        Finding(
            "bytes of objects / whole-file floor",
            f"{content / floor.bytes:.3f}; {_mb(content)} / {_mb(floor.bytes)}",
            "<= 1",
            content <= floor.bytes,
        ),
        Finding(
            "indexes, database and tar metadata / floor",
            f"{share:.1%}; {_mb(describing)}",
            f"<= {DESCRIBING_MAX:.0%}",
            share <= DESCRIBING_MAX,
        ),
        Finding(
            "all blocks on disk, ours / containers-storage",
            f"{blocks / containers_storage:.3f}; {_mb(blocks)} / {_mb(containers_storage)}",
            "",
            None,
        ),
    ]


def disk_lines(floor: Floor, usage: dict[str, Usage]) -> Iterator[str]:
    """The parts of the store beside the floor, as lines of a table."""
    yield f"{floor.images} images, {floor.layers} unique layers, {floor.files:,} regular files in them"
    yield f"tars of all images {_mb(floor.tars)}, of unique layers {_mb(floor.unique_tars)}"
    yield f"{'':24}{'files':>10}{'bytes':>12}{'blocks':>12}"
    files, size, blocks = len(floor.contents), floor.bytes, floor.rounded_bytes
    yield f"{'whole-file floor':24}{files:>10,}{_mb(size):>12}{_mb(blocks):>12}"
    for part, used in usage.items():
        yield f"{part:24}{used.files:>10,}{_mb(used.bytes):>12}{_mb(used.blocks):>12}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
