"""Which rows a run takes: the workloads' variants on their bases, and what the user asked for."""

import difflib
import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.errors import UserError
from benchmarks.results import Row
from benchmarks.subjects import Spec
from benchmarks.workload import Variant, Workload
from benchmarks.workloads import WORKLOADS

BASES = ("tmpfs", "disk", "ext4", "xfs", "btrfs")
AXES = ("layers", "names", "bytes", "files", "mounts")  # what plots run along, if it varies
MOUNTING_S = 0.15  # of one sample, beside the workload itself: mount, unmount, removing the upper


@dataclass(frozen=True, slots=True)
class Cell:
    """What one sample is taken of; it gives a value for each of its rows."""

    workload: Workload
    variant: Variant
    base: str

    @property
    def key(self) -> str:
        """Names the cell: workload/parameter=value..."""
        return _key(self.workload.name, self.variant)

    def row(self, part: str) -> Row:
        """The row of one of the workload's parts."""
        workload, variant = self.workload, self.variant
        name = f"{workload.name}.{part}" if part else workload.name
        return Row(
            id=f"{_key(name, variant)}@{self.base}",
            workload=name,
            family=workload.family,
            title=f"{workload.title}: {part}" if part else workload.title,
            unit=workload.parts[part],
            axis=workload.axis or next((name for name in AXES if name in variant.parameters), ""),
            parameters=variant.parameters,
            base=self.base,
        )

    def rows(self) -> list[Row]:
        """All rows, in the order of the parts."""
        return [self.row(part) for part in self.workload.parts]


def _key(name: str, variant: Variant) -> str:
    return "/".join([name, *(f"{key}={value}" for key, value in variant.parameters.items())])


def cells(quick: bool, only: Sequence[str], bases: Sequence[str]) -> list[Cell]:
    """The cells of a run.

    `only` holds row ids, workload names or shell patterns of either (none: all rows but those that
    are taken on request). A quick run takes the quick rows among them, or all of them where none is
    quick. `bases` replaces what the workloads name (none: theirs). Raises UserError where a word
    matches no row, or names no base.
    """
    for base in bases:
        if base not in BASES:
            raise UserError(f"--on {base}: not one of {', '.join(BASES)}")
    quickly = _on_bases(lambda variant: (variant.quick and bases) or variant.quick)
    fully = _on_bases(lambda variant: bases or variant.bases)
    if not only:
        return quickly if quick else [cell for cell in fully if not cell.variant.on_request]
    for word in only:
        if not _matching(fully, [word]):
            raise UserError(_no_such_row(word, fully))
    return (quick and _matching(quickly, only)) or _matching(fully, only)


def _on_bases(bases_of: Callable[[Variant], Sequence[str]]) -> list[Cell]:
    return [
        Cell(workload, variant, base)
        for workload in WORKLOADS
        for variant in workload.variants
        for base in bases_of(variant)
    ]


def estimate_s(chosen: Sequence[Cell], specs: Sequence[Spec], rounds: int) -> float:
    """A guess at the duration of a run, in seconds."""
    seconds = (
        cell.variant.seconds + MOUNTING_S
        for cell in chosen
        for spec in specs
        if cell.workload.takes(spec)
    )
    return sum(seconds) * rounds


def _matching(among: Sequence[Cell], words: Sequence[str]) -> list[Cell]:
    return [cell for cell in among if any(_matches(cell, word) for word in words)]


def _matches(cell: Cell, word: str) -> bool:
    names = [cell.workload.name, f"{cell.key}@{cell.base}", cell.key]
    for row in cell.rows():
        names += [row.id, row.workload]
    return any(word == name or fnmatch.fnmatchcase(name, word) for name in names)


def _no_such_row(word: str, among: Sequence[Cell]) -> str:
    known = {name for cell in among for row in cell.rows() for name in (row.workload, row.id)}
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "`run --list` names all rows"
    return f"--only {word}: no such row; {hint}"
