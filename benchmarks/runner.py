"""Takes the samples: round by round, row by row, subject by subject, each on a fresh upper.

A round visits every row before any row is visited again, and the order of subjects turns from one
visit to the next. So whatever the machine does for a while falls on all subjects of a row alike,
and on at most one sample of each.

Whatever ends a run (the last round, its time limit, Ctrl-C, SIGTERM), what was measured is in the
results, every mount is gone and every daemon that it started has ended.
"""

import datetime
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol, Self

from benchmarks import machine, probe, results, scratch, subjects
from benchmarks.arena import Arena
from benchmarks.errors import CannotMeasure, UserError
from benchmarks.forge import Forge, Site
from benchmarks.mounts import Layers, Mounted, Mounter
from benchmarks.plan import Cell
from benchmarks.results import Results, Sample, Skipped, Subject
from benchmarks.subjects import Spec
from benchmarks.workload import Measurement


class Watcher(Protocol):
    """Who is told how a run gets on."""

    def begin(self, samples: int) -> None:
        """So many samples are about to be taken."""

    def sample(self, round_number: int, row: str, subject: str) -> None:
        """This sample is about to be taken."""

    def note(self, text: str) -> None:
        """One line that the user should see."""

    def round_done(self, round_number: int) -> None:
        """All samples of a round (from 0) were taken."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a run is asked for. `limit_s` bounds its duration; `directory` is where it works."""

    cells: Sequence[Cell]
    specs: Sequence[Spec]
    rounds: int
    limit_s: float
    quick: bool
    directory: Path
    output: Path
    command: Sequence[str]


@dataclass(slots=True)
class _State:
    request: Request
    watcher: Watcher
    place: scratch.Scratch
    forge: Forge
    mounter: Mounter
    document: Results
    started: float
    specs: list[Spec] = field(default_factory=list)
    unable: set[tuple[str, str]] = field(default_factory=set)  # (cell with base, label)

    def skip(self, what: str, reason: str) -> None:
        """Notes what is not measured, and says so."""
        self.document.skipped.append(Skipped(what, reason))
        self.watcher.note(f"skipped {what}: {reason}")


def run(request: Request, watcher: Watcher) -> Results:
    """Carries out `request`, writing its results after every round and at the end.

    Raises UserError where nothing at all can be measured.
    """
    binary = probe.build()
    for directory in scratch.sweep(request.directory):
        watcher.note(f"cleared {directory}, left by a run that was killed")
    document = _empty(request)
    started = time.monotonic()
    with _Interruption() as interruption, _scratch(request.directory, watcher) as place:
        mounter = Mounter(place.path)
        forge = Forge(binary, place.path / "names")
        state = _State(request, watcher, place, forge, mounter, document, started)
        try:
            with interruption.let_through():
                _find_subjects(state)
                _rounds(state)
            document.complete, document.ended_by = True, "finished"
        except KeyboardInterrupt:
            document.ended_by = "interrupted"
        except _OutOfTime:
            document.ended_by = "time limit"
        finally:
            mounter.end_daemons()
            if state.specs:
                _write(state)
    return document


class _OutOfTime(Exception):
    """The time limit of the run has passed."""


def _empty(request: Request) -> Results:
    return Results(
        format=results.FORMAT,
        version=results.VERSION,
        command=list(request.command),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        duration_s=0.0,
        complete=False,
        ended_by="error",
        quick=request.quick,
        rounds=request.rounds,
        machine=machine.describe(),
        bases=[],
        subjects=[],
        rows=[row for cell in request.cells for row in cell.rows()],
        samples=[],
        skipped=[],
    )


class _Interruption:
    """Makes SIGTERM end a run as Ctrl-C does, and neither of them disturb the tidying up.

    A signal raises KeyboardInterrupt within `let_through`, once; one that comes before is raised
    when that begins, one that comes after is not: the run is ending anyway.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._came = False
        self._open = False

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._handle) for number in self._SIGNALS]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in zip(self._SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        if self._open:
            self._open = False
            raise KeyboardInterrupt

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Where a signal may interrupt."""
        try:
            self._open = True
            if self._came:
                raise KeyboardInterrupt
            yield
        finally:
            self._open = False


@contextmanager
def _scratch(parent: Path, watcher: Watcher) -> Iterator[scratch.Scratch]:
    place = scratch.Scratch(parent)
    try:
        yield place
    finally:
        for line in place.close():
            watcher.note(f"left behind: {line}")


def _find_subjects(state: _State) -> None:
    """Keeps the subjects that can be mounted, which is tried with a tree of one file."""
    base = _first_base(state)
    layers = state.forge.layers(base, "trial", 0, _lay_trial)
    for asked in state.request.specs:
        try:
            spec = subjects.locate(asked)
            state.document.subjects.append(_try(state, spec, layers, base))
        except CannotMeasure as reason:
            state.skip(f"subject {asked.label}", str(reason))
        else:
            state.specs.append(spec)
    if not state.specs:
        raise UserError("none of the subjects can be measured here")


def _try(state: _State, spec: Spec, layers: Layers, base: Path) -> Subject:
    if spec.kind == subjects.STORE:
        return spec.describe([])
    with state.mounter.mounted(spec, layers, base) as live:
        _check_trial(live)
        return spec.describe(live.command)


def _first_base(state: _State) -> Path:
    for name in dict.fromkeys([*(cell.base for cell in state.request.cells), "disk"]):
        try:
            return state.place.base(name)[1]
        except CannotMeasure:
            continue
    raise UserError(f"nothing can be mounted below {state.request.directory}")


def _lay_trial(site: Site) -> list[str]:
    site.flat(["file"], 1)
    return ["0"]


def _check_trial(live: Mounted) -> None:
    try:
        (live.root / "d" / "file").write_text("changed")
        if (live.root / "d" / "file").read_text() != "changed":
            raise CannotMeasure("a trial file did not keep what was written to it")
    except OSError as error:
        raise CannotMeasure(f"a trial file could not be changed: {error.strerror}") from None


def _rounds(state: _State) -> None:
    request = state.request
    wanted = {spec.label for c in request.cells for spec in state.specs if c.workload.takes(spec)}
    state.specs = [spec for spec in state.specs if spec.label in wanted]
    taken = sum(cell.workload.takes(spec) for cell in request.cells for spec in state.specs)
    state.watcher.begin(taken * request.rounds)
    for number in range(request.rounds):
        for index, cell in enumerate(request.cells):
            specs = [spec for spec in state.specs if cell.workload.takes(spec)]
            turn = (number + index) % max(1, len(specs))
            for spec in [*specs[turn:], *specs[:turn]]:
                if time.monotonic() - state.started > request.limit_s:
                    raise _OutOfTime
                state.watcher.sample(number, f"{cell.key}@{cell.base}", spec.label)
                _visit(state, cell, spec, number)
        state.watcher.round_done(number)
        _write(state)


def _visit(state: _State, cell: Cell, spec: Spec, number: int) -> None:
    """Takes one sample, or notes for good why this subject has none of this row."""
    key = f"{cell.key}@{cell.base}"
    if (key, spec.label) in state.unable or (key, "") in state.unable:
        return
    try:
        base, layers = _prepare(state, cell)
    except CannotMeasure as reason:
        state.unable.add((key, ""))
        state.skip(f"row {key}", str(reason))
        return
    at_s = time.monotonic() - state.started
    try:
        measured = _measure(state, cell, spec, base, layers)
    except (CannotMeasure, OSError) as reason:
        state.unable.add((key, spec.label))
        state.skip(f"row {key} of {spec.label}", str(reason))
        return
    for part, measurement in measured.items():
        state.document.samples.append(
            _sample(cell.row(part).id, spec.label, number, at_s, measurement)
        )


def _prepare(state: _State, cell: Cell) -> tuple[Path, Layers]:
    _, base = state.place.base(cell.base)
    workload, variant = cell.workload, cell.variant
    layers = state.forge.layers(
        base, cell.key, variant.space, lambda site: workload.lay(site, variant.parameters)
    )
    return base, layers


def _measure(
    state: _State, cell: Cell, spec: Spec, base: Path, layers: Layers
) -> dict[str, Measurement]:
    workload, parameters = cell.workload, cell.variant.parameters
    place = base / "place"
    place.mkdir(exist_ok=True)
    arena = Arena(spec, layers, place, state.forge, state.mounter)
    if workload.mounts_itself:
        return workload.measure(arena, parameters)
    reusable = spec.kind == subjects.PLAIN and not workload.changes
    plain = state.forge.merged(layers) if reusable else None
    read_only = cell.variant.read_only
    with state.mounter.mounted(spec, layers, place, plain, read_only) as arena.live:
        return workload.measure(arena, parameters)


def _sample(row: str, subject: str, number: int, at_s: float, measurement: Measurement) -> Sample:
    return Sample(
        row=row,
        subject=subject,
        round=number,
        value=measurement.value,
        wall_s=measurement.wall_s,
        operations=measurement.operations,
        at_s=at_s,
        daemon_cpu_s=measurement.daemon_cpu_s,
        caller_cpu_s=measurement.caller_cpu_s,
        extra=measurement.extra,
    )


def _write(state: _State) -> None:
    document = state.document
    document.duration_s = time.monotonic() - state.started
    document.bases = state.place.bases()
    results.save(document, state.request.output)
