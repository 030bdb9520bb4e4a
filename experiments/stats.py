"""Intervals and scores of predictions, each in a few lines."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple, TypeVar

from lit_align.boundary.interval import student_t_quantile

T = TypeVar("T")


class Estimate(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_of(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean with Student's t interval; without one (NaN) for a single value."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = student_t_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def wilson(successes: int, count: int, confidence: float = 0.95) -> Estimate:
    """A share with Wilson's interval (Wilson 1927); (0, 1) around NaN where the count is 0."""
    if not count:
        return Estimate(math.nan, 0.0, 1.0)
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Estimate(share, centre - half, centre + half)


def auc(values: Sequence[float], labels: Sequence[bool]) -> float:
    """The chance that a positive's value is above a negative's, ties half; NaN where one kind is missing."""
    positive = [value for value, label in zip(values, labels, strict=True) if label]
    negative = [value for value, label in zip(values, labels, strict=True) if not label]
    if not positive or not negative:
        return math.nan
    return fmean((a > b) + (a == b) / 2 for a in positive for b in negative)


def bootstrap(
    clusters: Sequence[Sequence[T]], statistic: Callable[[list[T]], float], draws: int = 1000, confidence: float = 0.95
) -> Estimate:
    """A statistic with its percentile interval, drawing whole clusters, whose members depend on each other.

    Draws for which the statistic is NaN are left out.
    """
    rng = random.Random(0)
    drawn = (statistic([x for one in rng.choices(clusters, k=len(clusters)) for x in one]) for _ in range(draws))
    found = sorted(value for value in drawn if not math.isnan(value))
    value = statistic([x for one in clusters for x in one])
    if not found:
        return Estimate(value, math.nan, math.nan)
    tail = (1 - confidence) / 2
    ends = [found[min(len(found) - 1, int(share * len(found)))] for share in (tail, 1 - tail)]
    return Estimate(value, *ends)
