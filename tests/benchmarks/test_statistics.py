"""Intervals hold what they say they hold, checked against scipy and by drawing samples."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.statistics import (
    _mann_whitney_tail,
    geometric_mean,
    median_interval,
    paired_ratio,
    shift_ratio,
)

values = st.floats(min_value=0.01, max_value=1e6, allow_nan=False)


@given(st.lists(values, min_size=1, max_size=40))
def test_the_median_lies_in_its_interval(samples: list[float]) -> None:
    found = median_interval(samples)
    assert min(samples) <= found.low <= found.middle <= found.high <= max(samples)
    assert 0 <= found.confidence < 1


def test_few_samples_say_what_they_are_worth() -> None:
    assert median_interval([3.0]).confidence == 0
    assert median_interval([1, 2, 3]).confidence == 0.75
    assert median_interval([1, 2, 3, 4, 5]).confidence == 0.9375
    six = median_interval([1, 2, 3, 4, 5, 6])
    assert (six.low, six.middle, six.high) == (1, 3.5, 6)
    assert six.confidence == pytest.approx(0.96875)


def test_enough_samples_leave_outliers_out() -> None:
    found = median_interval([*range(1, 9), 1000])
    assert (found.low, found.middle, found.high) == (2, 5, 8)
    assert found.confidence >= 0.95


def test_the_interval_of_the_median_agrees_with_scipy() -> None:
    samples = [math.sin(i) + 2 for i in range(25)]
    found = median_interval(samples)
    theirs = stats.quantile_test(samples, q=0.0, p=0.5).confidence_interval(confidence_level=0.95)
    # scipy's ends leave out at most 2.5 percent each; ours may not be wider.
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_the_median_is_in_its_interval_as_often_as_promised() -> None:
    chance = random.Random(1)
    rounds, tries = 7, 2000
    held = sum(
        median_interval([chance.lognormvariate(0, 0.5) for _ in range(rounds)]).holds(1.0)
        for _ in range(tries)
    )
    promised = median_interval(list(range(rounds))).confidence
    assert held / tries == pytest.approx(promised, abs=0.02)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 5), (6, 6), (9, 4)])
def test_the_distribution_of_u_agrees_with_scipy(m: int, n: int) -> None:
    tail = _mann_whitney_tail(m, n)
    assert tail[-1] == pytest.approx(1)
    # The first sample's values end below `u` of the second's: a U that we know.
    low, high = list(range(m)), [m - 0.5 + i for i in range(n)]
    found = stats.mannwhitneyu(low, high, alternative="less", method="exact")
    assert tail[int(found.statistic)] == pytest.approx(found.pvalue)


def test_a_shift_is_found_and_no_shift_is_not() -> None:
    chance = random.Random(2)
    old = [chance.lognormvariate(0, 0.05) for _ in range(8)]
    slower = [1.3 * chance.lognormvariate(0, 0.05) for _ in range(8)]
    found = shift_ratio(old, slower)
    assert found.low > 1.1
    assert found.holds(1.3)
    assert found.confidence >= 0.99


def test_false_alarms_are_as_rare_as_promised() -> None:
    chance = random.Random(3)
    tries, alarms = 2000, 0
    for _ in range(tries):
        old, new = ([chance.lognormvariate(0, 0.3) for _ in range(6)] for _ in "on")
        alarms += not shift_ratio(old, new).holds(1.0)
    assert alarms / tries < 0.015


def test_a_shift_needs_enough_samples() -> None:
    found = shift_ratio([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    assert found.confidence == pytest.approx(0.9)


def test_pairing_takes_out_what_slowed_both() -> None:
    baseline = [1.0, 5.0, 2.0, 9.0, 1.0, 3.0]
    found = paired_ratio([3 * value for value in baseline], baseline)
    assert (found.low, found.middle, found.high) == (3, 3, 3)


def test_what_has_no_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median_interval([])
    with pytest.raises(ValueError, match="different rounds"):
        paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([1.0], [0.0])
    with pytest.raises(ValueError, match="positive"):
        shift_ratio([1.0], [0.0])
    with pytest.raises(ValueError, match="no values"):
        geometric_mean([])


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4)
