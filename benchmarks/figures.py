"""The figures that tables and plots show, worked out from the samples of one result.

Owns which figures there are; knows nothing of how they are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.errors import UserError
from benchmarks.results import Results, Row, Sample, Subject
from benchmarks.statistics import Interval, geometric_mean, median_interval, paired_ratio


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of one subject.

    `cost` is the median in the row's unit, `ratio` that to the baseline (None: it is the baseline,
    or has no sample, or is 0 somewhere), `daemon_cpu_us` the processor time of the serving
    processes for each operation.
    """

    row: Row
    subject: str
    rounds: int
    cost: Interval
    ratio: Interval | None
    daemon_cpu_us: float | None


class Figures:
    """All figures of a result, with one subject as the baseline."""

    def __init__(self, results: Results, baseline: str | None = None) -> None:
        """Works them out. `baseline` None: the first subject that was measured.

        Raises UserError where there are no samples or no such subject.
        """
        self.results = results
        samples: dict[tuple[str, str], list[Sample]] = {}
        for sample in results.samples:
            samples.setdefault((sample.row, sample.subject), []).append(sample)
        measured = {subject for _, subject in samples}
        self.subjects: list[Subject] = [s for s in results.subjects if s.label in measured]
        if not self.subjects:
            raise UserError("the result has no samples")
        self.baseline = baseline or self.subjects[0].label
        if self.baseline not in measured:
            known = ", ".join(subject.label for subject in self.subjects)
            raise UserError(f"--baseline {self.baseline}: no such subject; there are {known}")
        self.rows = [row for row in results.rows if any(key[0] == row.id for key in samples)]
        self._figures = {
            (row.id, label): self._figure(row, label, samples)
            for row in self.rows
            for label in (subject.label for subject in self.subjects)
            if (row.id, label) in samples
        }

    def _figure(self, row: Row, label: str, samples: dict[tuple[str, str], list[Sample]]) -> Figure:
        own = samples[row.id, label]
        cpu = [s.daemon_cpu_s / s.operations for s in own if s.daemon_cpu_s is not None]
        return Figure(
            row,
            label,
            len(own),
            median_interval([sample.value for sample in own]),
            _ratio(own, samples.get((row.id, self.baseline), []))
            if label != self.baseline
            else None,
            median_interval(cpu).middle * 1e6 if cpu else None,
        )

    def of(self, row: Row, label: str) -> Figure | None:
        """The figure of a row and subject; None where it was not measured."""
        return self._figures.get((row.id, label))

    def families(self) -> dict[str, list[Row]]:
        """The rows that have figures by family, in their order."""
        families: dict[str, list[Row]] = {}
        for row in self.rows:
            families.setdefault(row.family, []).append(row)
        return families

    def overall(self, rows: Sequence[Row], label: str) -> tuple[float, int] | None:
        """The geometric mean of a subject's ratios over `rows` and how many it is of."""
        figures = [self.of(row, label) for row in rows]
        ratios = [f.ratio.middle for f in figures if f is not None and f.ratio is not None]
        return (geometric_mean(ratios), len(ratios)) if ratios else None


def _ratio(own: list[Sample], baseline: list[Sample]) -> Interval | None:
    floor = {sample.round: sample.value for sample in baseline}
    pairs = [(s.value, floor[s.round]) for s in own if s.round in floor]
    if not pairs or any(value <= 0 or base <= 0 for value, base in pairs):
        return None
    return paired_ratio([value for value, _ in pairs], [base for _, base in pairs])
