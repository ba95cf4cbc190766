"""Results made up for tests: rows, subjects and samples without a machine behind them."""

from collections.abc import Sequence

from benchmarks import results
from benchmarks.results import Machine, Results, Row, Sample, Subject

MACHINE = Machine(
    hostname="host",
    architecture="x86_64",
    processor="A Processor",
    processors=2,
    memory_kib=4 << 20,
    kernel="Linux 6.18",
    system="Debian",
    python="3.11",
    virtualization="none known",
    clocksource="tsc",
    privileged=True,
    programs={"fio": "fio-3.33"},
)


def row(name: str, layers: int = 1) -> Row:
    """A row of a workload with one parameter."""
    return Row(
        id=f"{name}/layers={layers}@tmpfs",
        workload=name,
        family="Lookup",
        title=name,
        unit="µs",
        axis="layers",
        parameters={"layers": layers},
        base="tmpfs",
    )


def document(*values: tuple[Row, str, Sequence[float]]) -> Results:
    """A result with these samples of a row and subject, one a round."""
    labels = dict.fromkeys(label for _, label, _ in values)
    return Results(
        format=results.FORMAT,
        version=results.VERSION,
        command=["python", "-m", "benchmarks", "run"],
        started="2026-01-01T00:00:00+00:00",
        duration_s=60.0,
        complete=True,
        ended_by="finished",
        quick=False,
        rounds=max(len(samples) for _, _, samples in values),
        machine=MACHINE,
        bases=[],
        subjects=[Subject(label, "kernel", "1", [], []) for label in labels],
        rows=list({row.id: row for row, _, _ in values}.values()),
        samples=[
            Sample(
                row=row.id,
                subject=label,
                round=number,
                value=value,
                wall_s=value / 1e3,
                operations=1000,
                at_s=float(number),
            )
            for row, label, samples in values
            for number, value in enumerate(samples)
        ],
        skipped=[],
    )
