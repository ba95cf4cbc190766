"""What a run writes and the other commands read: one JSON file with every raw sample.

Owns the format, its version and its checks. Figures are derived from the samples by whoever
shows them, never stored. Every value of a row is a cost: less is better.
"""

import os
import tempfile
from pathlib import Path

import msgspec

from benchmarks.errors import UserError

FORMAT = "overlayfs-benchmark"
VERSION = 1

Parameter = str | int


class Machine(msgspec.Struct, frozen=True):
    """Where a run took place. `programs` maps a program to the version it reports."""

    hostname: str
    architecture: str
    processor: str
    processors: int
    memory_kib: int
    kernel: str
    system: str
    python: str
    virtualization: str
    clocksource: str
    privileged: bool
    programs: dict[str, str]


class Base(msgspec.Struct, frozen=True):
    """A file system that layers were laid on: `name` as in a row's id, its type, where it was."""

    name: str
    type: str
    description: str


class Subject(msgspec.Struct, frozen=True):
    """One file system that was measured.

    `command` is one of its mount commands as it was run (empty for the plain directory);
    `lookup_delay_ns` a delay put into its lookups on purpose, to prove that `compare` finds one.
    """

    label: str
    kind: str
    version: str
    options: list[str]
    command: list[str]
    lookup_delay_ns: int = 0


class Row(msgspec.Struct, frozen=True):
    """One line of the tables: a workload with its parameters on one base.

    `family` groups rows, `axis` names the parameter that plots run along ("" for none).
    """

    id: str
    workload: str
    family: str
    title: str
    unit: str
    axis: str
    parameters: dict[str, Parameter]
    base: str


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measurement of one row with one subject in one round (from 0).

    `value` is in the row's unit. `wall_s` is what the clock said for all `operations` together,
    `daemon_cpu_s` the processor time of the serving processes meanwhile (None: there are none, or
    they could not be found), `caller_cpu_s` that of the program that asked. `extra` holds further
    figures under names that end in their unit.
    """

    row: str
    subject: str
    round: int
    value: float
    wall_s: float
    operations: int
    at_s: float
    daemon_cpu_s: float | None = None
    caller_cpu_s: float | None = None
    extra: dict[str, float] = {}


class Skipped(msgspec.Struct, frozen=True):
    """What was asked for and not measured, and why: a subject, a base, a row, or a row's subject."""

    what: str
    reason: str


class Results(msgspec.Struct):
    """One run. `complete` is False where it was interrupted or ran into its time limit."""

    format: str
    version: int
    command: list[str]
    started: str
    duration_s: float
    complete: bool
    ended_by: str
    quick: bool
    rounds: int
    machine: Machine
    bases: list[Base]
    subjects: list[Subject]
    rows: list[Row]
    samples: list[Sample]
    skipped: list[Skipped]

    def values(self, row: str, subject: str) -> dict[int, float]:
        """The values of one row and subject by round."""
        return {s.round: s.value for s in self.samples_of(row, subject)}

    def samples_of(self, row: str, subject: str) -> list[Sample]:
        """The samples of one row and subject, as taken."""
        return [s for s in self.samples if s.row == row and s.subject == subject]


def save(results: Results, path: Path) -> None:
    """Writes `results` to `path`, which at no time holds half of them. Raises OSError."""
    text = msgspec.json.format(msgspec.json.encode(results), indent=1)
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text + b"\n")
            os.fchmod(file.fileno(), 0o644)
        os.rename(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def load(path: Path) -> Results:
    """Reads what `save` wrote. Raises UserError naming the file and what is wrong with it."""
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: not a result of `benchmarks run`: {error}") from None
    if results.format != FORMAT or results.version != VERSION:
        raise UserError(
            f"{path}: {results.format!r} version {results.version}, expected {FORMAT!r} {VERSION}"
        )
    _check_references(path, results)
    return results


def _check_references(path: Path, results: Results) -> None:
    rows = {row.id for row in results.rows}
    subjects = {subject.label for subject in results.subjects}
    for number, sample in enumerate(results.samples):
        if sample.row not in rows:
            raise UserError(f"{path}: sample {number} is of an unknown row {sample.row!r}")
        if sample.subject not in subjects:
            raise UserError(f"{path}: sample {number} is of an unknown subject {sample.subject!r}")
