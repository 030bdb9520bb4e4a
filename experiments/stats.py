"""Confidence intervals, and the area under the ROC curve."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import chain, product
from statistics import fmean, stdev
from typing import NamedTuple, TypeVar

from lit_align.boundary.interval import student_t_quantile
from lit_align.judges.quality import wilson as wilson_interval

T = TypeVar("T")


class Estimate(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_of(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Computes the mean with Student's t interval, which is NaN for a single value."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = student_t_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def wilson(successes: int, count: int, confidence: float = 0.95) -> Estimate:
    """Computes a share with Wilson's interval; NaN in (0, 1) if the count is 0."""
    if not count:
        return Estimate(math.nan, 0.0, 1.0)
    share = successes / count
    return Estimate(share, *wilson_interval(share, count, confidence))


def auc(values: Sequence[float], labels: Sequence[bool]) -> float:
    """Computes the probability that a positive's value is above a negative's, ties half; NaN if either is missing."""
    positive = [value for value, label in zip(values, labels, strict=True) if label]
    negative = [value for value, label in zip(values, labels, strict=True) if not label]
    if not positive or not negative:
        return math.nan
    return fmean((a > b) + (a == b) / 2 for a, b in product(positive, negative))


def bootstrap(
    clusters: Sequence[Sequence[T]], statistic: Callable[[list[T]], float], draws: int = 1000, confidence: float = 0.95
) -> Estimate:
    """Computes a statistic with its percentile interval, resampling whole clusters, as their members are dependent.

    Resamples with NaN as the statistic are left out.
    """
    rng = random.Random(0)
    resamples = (rng.choices(clusters, k=len(clusters)) for _ in range(draws))
    values = sorted(value for sample in resamples if not math.isnan(value := statistic(_flat(sample))))
    value = statistic(_flat(clusters))
    if not values:
        return Estimate(value, math.nan, math.nan)
    tail = (1 - confidence) / 2
    low, high = (values[min(len(values) - 1, int(share * len(values)))] for share in (tail, 1 - tail))
    return Estimate(value, low, high)


def _flat(clusters: Sequence[Sequence[T]]) -> list[T]:
    return list(chain.from_iterable(clusters))
