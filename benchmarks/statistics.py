"""Medians, ratios and their intervals, from few and skewed samples.

Everything here is exact and free of a distribution: a handful of rounds on a machine that does
other things as well is neither normal nor large. What an interval covers is computed, and
returned with it, because five rounds cannot give 95 percent however they are treated.

Sources: Conover, Practical Nonparametric Statistics, 3rd ed.: 3.2 (interval of a quantile from
order statistics), 5.4 (Hodges-Lehmann interval of a shift from the Mann-Whitney test).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the interval around it, which holds the true value with `confidence`."""

    low: float
    middle: float
    high: float
    confidence: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside, ends included."""
        return self.low <= value <= self.high


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median and the narrowest pair of order statistics that holds it with `confidence`.

    Where there are too few samples for that, the interval is from the least to the greatest, and
    `Interval.confidence` says what this is worth. Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("no samples")
    values = sorted(samples)
    count = len(values)
    # The k-th value from either end is inside with 1 - 2 P(B < k), B binomial(count, 1/2).
    outside, worth = 0, _order_confidence(count, 0)
    for k in range(1, (count + 1) // 2):
        attained = _order_confidence(count, k)
        if attained < confidence:
            break
        outside, worth = k, attained
    return Interval(values[outside], float(np.median(values)), values[-1 - outside], worth)


def _order_confidence(count: int, outside: int) -> float:
    """The chance that the median is between the values `outside` places from either end."""
    return max(0.0, 1.0 - 2.0 * float(stats.binom.cdf(outside, count, 0.5)))


def paired_ratio(
    samples: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> Interval:
    """The median of samples[i] / baseline[i], each pair from one round.

    Dividing within a round takes out what slowed both. Raises ValueError where the lengths differ
    or a baseline is not positive.
    """
    if len(samples) != len(baseline):
        raise ValueError("samples and baseline come from different rounds")
    if any(value <= 0 for value in baseline):
        raise ValueError("a ratio needs a positive baseline")
    return median_interval([a / b for a, b in zip(samples, baseline, strict=True)], confidence)


def shift_ratio(old: Sequence[float], new: Sequence[float], confidence: float = 0.99) -> Interval:
    """By what factor `new` differs from `old`, two runs whose rounds have nothing in common.

    Hodges and Lehmann's estimate on logarithms: the median of all quotients, its interval from
    the exact distribution of Mann and Whitney's U. As with `median_interval`, too few samples
    give the widest interval and what it is worth. Raises ValueError without samples or where one
    is not positive.
    """
    if not old or not new:
        raise ValueError("no samples")
    if min(*old, *new) <= 0:
        raise ValueError("a ratio needs positive samples")
    quotients = sorted(math.log(b / a) for a in old for b in new)
    tail = _mann_whitney_tail(len(old), len(new))
    # With k quotients left out at either end the interval holds the shift with 1 - 2 P(U <= k).
    outside, worth = 0, 1.0 - 2.0 * tail[0]
    for k in range(1, (len(quotients) + 1) // 2):
        attained = 1.0 - 2.0 * tail[k]
        if attained < confidence:
            break
        outside, worth = k, attained
    return Interval(
        math.exp(quotients[outside]),
        math.exp(float(np.median(quotients))),
        math.exp(quotients[-1 - outside]),
        max(0.0, worth),
    )


@lru_cache(maxsize=64)
def _mann_whitney_tail(m: int, n: int) -> tuple[float, ...]:
    """P(U <= k) for k = 0 .. m*n, where samples of sizes m and n do not differ.

    The number of arrangements with U = k is the coefficient of x^k in the Gaussian binomial
    coefficient of m + n over m. Whole numbers: the products cancel, and floats would not.
    """
    size = m * n + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, m + 1):
        for k in range(size - 1, n + i - 1, -1):  # times 1 - x^(n+i)
            counts[k] -= counts[k - n - i]
        for k in range(i, size):  # divided by 1 - x^i
            counts[k] += counts[k - i]
    every = math.comb(m + n, m)
    return tuple(below / every for below in itertools.accumulate(counts))


def geometric_mean(values: Sequence[float]) -> float:
    """The mean that suits ratios. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return math.exp(sum(math.log(value) for value in values) / len(values))
