"""Verdicts: what is slower is called slower, noise is not, and too little is said to be too little."""

import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from benchmarks import cli, results
from benchmarks.compare import Verdict, compare
from benchmarks.errors import UserError
from benchmarks.results import Results
from tests.benchmarks.documents import document, row

ROWS = [row("lookup", layers) for layers in (1, 10, 100)]


def noisy(seed: int, cost: float, rounds: int = 7, noise: float = 0.04) -> list[float]:
    """Samples around `cost`, skewed as timings are."""
    chance = random.Random(seed)
    return [cost * chance.lognormvariate(0, noise) for _ in range(rounds)]


def run(seed: int, costs: Sequence[float], rounds: int = 7, machine: float = 1.0) -> Results:
    """One run of two subjects; the floor costs a tenth."""
    values = []
    for number, (line, cost) in enumerate(zip(ROWS, costs, strict=True)):
        values.append((line, "plain", noisy(seed + number, cost / 10 * machine, rounds)))
        values.append((line, "kernel", noisy(seed + number + 50, cost * machine, rounds)))
    return document(*values)


COSTS = (40.0, 50.0, 200.0)


def test_five_microseconds_in_lookup_are_found() -> None:
    old, new = run(1, COSTS), run(1000, (45.0, 50.0, 200.0))
    slower = compare(old, new).called(Verdict.SLOWER)
    assert [(c.row.id, c.subject) for c in slower if c.subject == "kernel"] == [
        (ROWS[0].id, "kernel")
    ]
    assert slower[0].ratio.low > 1.03


def test_what_got_faster_is_named_and_no_failure(tmp_path: Path) -> None:
    old, new = run(1, COSTS), run(1000, (40.0, 50.0, 100.0))
    assert ROWS[2].id in {c.row.id for c in compare(old, new).called(Verdict.FASTER)}
    assert status(tmp_path, old, new) == 0


def test_the_same_twice_is_no_change() -> None:
    alarms = 0
    for seed in range(100):
        found = compare(run(seed, COSTS), run(seed + 5000, COSTS))
        alarms += len(found.called(Verdict.SLOWER)) + len(found.called(Verdict.FASTER))
    assert alarms <= 1  # of 600


def test_too_few_rounds_are_not_called() -> None:
    found = compare(run(1, COSTS, rounds=3), run(2, (400.0, 50.0, 200.0), rounds=3))
    assert len(found.called(Verdict.UNDECIDED)) == 6


def test_less_than_the_threshold_is_of_no_interest() -> None:
    old = document((ROWS[0], "kernel", noisy(1, 40, 20, 0.001)))
    new = document((ROWS[0], "kernel", noisy(2, 41.6, 20, 0.001)))
    assert compare(old, new, threshold=0.03).called(Verdict.SLOWER)
    assert not compare(old, new, threshold=0.05).called(Verdict.SLOWER)


def test_a_slower_machine_is_taken_out() -> None:
    old, new = run(1, COSTS), run(900, COSTS, machine=1.5)
    assert len(compare(old, new).called(Verdict.SLOWER)) == 6
    found = compare(old, new, relative_to="plain")
    assert len(found.changes) == 3
    assert not found.called(Verdict.SLOWER)


def test_a_cost_of_nothing_does_not_change() -> None:
    old = document((ROWS[0], "kernel", [0.0] * 6))
    assert compare(old, old).changes[0].verdict is Verdict.SAME


def test_what_only_one_has_is_named() -> None:
    old = document((ROWS[0], "kernel", noisy(1, 1)), (ROWS[1], "kernel", noisy(1, 1)))
    new = document((ROWS[0], "kernel", noisy(1, 1)), (ROWS[0], "plain", noisy(1, 1)))
    found = compare(old, new)
    assert found.only_old == [f"{ROWS[1].id} of kernel"]
    assert found.only_new == [f"{ROWS[0].id} of plain"]
    with pytest.raises(UserError, match="no row of any subject"):
        compare(old, document((ROWS[2], "kernel", [1.0])))
    with pytest.raises(UserError, match="--relative-to other"):
        compare(old, new, relative_to="other")


def test_what_makes_two_results_unlike_is_said() -> None:
    old = document((ROWS[0], "kernel", noisy(1, 1)))
    new = document((ROWS[0], "kernel", noisy(1, 1)))
    new.machine = msgspec.structs.replace(new.machine, kernel="Linux 7")
    new.subjects = [msgspec.structs.replace(new.subjects[0], lookup_delay_ns=5000)]
    new.complete, new.ended_by = False, "interrupted"
    assert compare(old, new).remarks == [
        "kernel differs: Linux 6.18 before, Linux 7 now",
        "kernel has 5 µs put into its lookups on purpose, had 0",
        "NEW is not complete: it ended by interrupted",
    ]


def test_the_command_exits_1_where_something_is_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = run(1, COSTS), run(1000, (40.0, 100.0, 200.0))
    assert status(tmp_path, old, new) == 1
    printed = capsys.readouterr().out
    assert "slower" in printed
    assert ROWS[1].id in printed
    assert status(tmp_path, old, old) == 0


def status(directory: Path, old: Results, new: Results) -> int:
    """The exit status of `compare`."""
    results.save(old, directory / "old.json")
    results.save(new, directory / "new.json")
    return cli.main(["compare", str(directory / "old.json"), str(directory / "new.json")])
