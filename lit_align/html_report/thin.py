"""Long lines made short enough to draw, without hiding what they do."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lit_align.html_report.reading import Series

POINTS = 800
"""Points of a line at most."""


def thin(series: Series, points: int = POINTS) -> Series:
    """A series with the lowest and the highest value of each stretch of steps, so that no peak is lost.

    Args:
        series: of any length.
        points: how many are kept at most, at least 4; a shorter series stays as it is.

    Example:
        >>> long = Series(np.arange(1000), np.where(np.arange(1000) == 777, 9.0, 0.0))
        >>> short = thin(long, 20)
        >>> len(short.steps) <= 20, float(short.values.max()), int(short.steps[short.values.argmax()])
        (True, 9.0, 777)
    """
    count = len(series.steps)
    if count <= points:
        return series
    edges = np.linspace(1, count - 1, points // 2).astype(int)
    kept = {0, count - 1}
    for start, end in pairwise(edges):
        stretch = series.values[start:end]
        kept |= {start + int(stretch.argmin()), start + int(stretch.argmax())}
    places = np.array(sorted(kept)[:points])
    return Series(series.steps[places], series.values[places])


def moving_mean(series: Series, window: int) -> Series:
    """The mean of each value and those before it, `window` values in all; fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(series.values)])
    ends = np.arange(1, len(series.values) + 1)
    starts = np.maximum(0, ends - window)
    return Series(series.steps, (sums[ends] - sums[starts]) / (ends - starts))


def window_of(series: Series) -> int:
    """Over how many steps a line is smoothed: a thirtieth of the run, 1 (not at all) where it is short."""
    count = len(series.steps)
    return 1 if count < 60 else max(5, count // 30)
