"""What changed between two results: which rows got slower or faster by more than noise.

A row of a subject is called slower where the whole interval of the quotient new/old lies above
1 + threshold. The interval comes from all pairs of an old and a new sample (statistics.shift_ratio),
so it is as wide as the rounds of either run disagree.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from benchmarks.errors import UserError
from benchmarks.results import Results, Row
from benchmarks.statistics import Interval, shift_ratio


class Verdict(Enum):
    """What can be said of one row of one subject."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "no change beyond noise"
    UNDECIDED = "too few rounds to tell"


@dataclass(frozen=True, slots=True)
class Change:
    """One row of one subject in both results. `ratio` is new over old, of costs."""

    row: Row
    subject: str
    old_median: float
    new_median: float
    ratio: Interval
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that both results have, what only one has, and remarks on whether they compare."""

    changes: list[Change]
    only_old: list[str]
    only_new: list[str]
    remarks: list[str]

    def called(self, verdict: Verdict) -> list[Change]:
        """The changes with that verdict, the largest first."""
        found = [change for change in self.changes if change.verdict is verdict]
        return sorted(found, key=lambda change: abs(change.ratio.middle - 1), reverse=True)


def compare(
    old: Results,
    new: Results,
    *,
    threshold: float = 0.03,
    confidence: float = 0.99,
    relative_to: str | None = None,
) -> Comparison:
    """Compares two results.

    `threshold` is the change that is of no interest (0.03: three percent); `confidence` that of
    each interval; `relative_to` the label of a subject by whose value in the same round each value
    is divided first, which takes out a change of the machine. Raises UserError where the results
    have nothing in common.
    """
    old_values = _by_row(old, relative_to)
    new_values = _by_row(new, relative_to)
    rows = {row.id: row for row in [*old.rows, *new.rows]}
    changes = [
        _change(rows[key[0]], key[1], samples, new_values[key], threshold, confidence)
        for key, samples in old_values.items()
        if key in new_values
    ]
    if not changes:
        raise UserError("the two results have no row of any subject in common")
    return Comparison(
        changes,
        _missing(old_values, new_values),
        _missing(new_values, old_values),
        _remarks(old, new),
    )


_Values = dict[tuple[str, str], list[float]]


def _by_row(results: Results, relative_to: str | None) -> _Values:
    values: dict[tuple[str, str], dict[int, float]] = {}
    for sample in results.samples:
        values.setdefault((sample.row, sample.subject), {})[sample.round] = sample.value
    if relative_to is None:
        return {key: list(found.values()) for key, found in values.items()}
    if relative_to not in {subject.label for subject in results.subjects}:
        raise UserError(f"--relative-to {relative_to}: not a subject of both results")
    relative: _Values = {}
    for (row, subject), found in values.items():
        floor = values.get((row, relative_to), {})
        both = [found[number] / floor[number] for number in found if floor.get(number)]
        if both and subject != relative_to:
            relative[row, subject] = both
    return relative


def _change(
    row: Row,
    subject: str,
    old: list[float],
    new: list[float],
    threshold: float,
    confidence: float,
) -> Change:
    # A memory row can be 0 where there is no daemon: nothing to divide by, and nothing changed.
    positive = min(*old, *new) > 0
    ratio = shift_ratio(old, new, confidence) if positive else Interval(1.0, 1.0, 1.0, 1.0)
    if ratio.confidence < confidence:
        verdict = Verdict.UNDECIDED
    elif ratio.low > 1 + threshold:
        verdict = Verdict.SLOWER
    elif ratio.high < 1 / (1 + threshold):
        verdict = Verdict.FASTER
    else:
        verdict = Verdict.SAME
    return Change(row, subject, statistics.median(old), statistics.median(new), ratio, verdict)


def _missing(here: Iterable[tuple[str, str]], there: Iterable[tuple[str, str]]) -> list[str]:
    others = set(there)
    return [f"{row} of {subject}" for row, subject in here if (row, subject) not in others]


def _remarks(old: Results, new: Results) -> list[str]:
    remarks = []
    for name in ("hostname", "processor", "processors", "kernel", "privileged", "virtualization"):
        before, after = getattr(old.machine, name), getattr(new.machine, name)
        if before != after:
            remarks.append(f"{name} differs: {before} before, {after} now")
    subjects = {subject.label: subject for subject in old.subjects}
    for subject in new.subjects:
        earlier = subjects.get(subject.label)
        if earlier is None:
            continue
        if earlier.version != subject.version:
            remarks.append(f"{subject.label} was {earlier.version}, is {subject.version}")
        if earlier.options != subject.options:
            remarks.append(f"{subject.label} has other mount options")
        if earlier.lookup_delay_ns != subject.lookup_delay_ns:
            remarks.append(
                f"{subject.label} has {subject.lookup_delay_ns / 1000:g} µs put into its lookups "
                f"on purpose, had {earlier.lookup_delay_ns / 1000:g}"
            )
    for name, results in (("OLD", old), ("NEW", new)):
        if not results.complete:
            remarks.append(f"{name} is not complete: it ended by {results.ended_by}")
    return remarks
