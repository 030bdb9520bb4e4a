"""How many prompts a decision takes, found by asking the test itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from lit_align.boundary.interval import mean_interval
from lit_align.boundary.result import BOUNDARY
from lit_align.boundary.sequential import log_capital, log_threshold

_SHARES = np.array([0.0, 0.5, 1.0])
_MOST = 1_000_000


@lru_cache
def prompts_to_decide(score: float, alpha: float = 0.05, sequential: bool = True, threshold: float = BOUNDARY) -> int:
    """The fewest prompts of a given mean share whose interval leaves the threshold out.

    Each prompt has two independent votes, which spreads its share about as much as four votes on prompts of mixed
    difficulty do; where the score is 0 or 1 the number is the fewest that can decide at all. A measurement takes
    about as many, more or fewer by chance.

    Args:
        score: the mean share, in [0, 1], other than the threshold.
        alpha: the chance of error, in (0, 1).
        sequential: whether the interval is that of :class:`~lit_align.boundary.sequential.SequentialTest` or Student's.
        threshold: the score at which the two stages meet, in (0, 1).

    Returns:
        Prompts, at most a million.

    Example:
        >>> prompts_to_decide(1.0), prompts_to_decide(0.4), prompts_to_decide(0.45)
        (10, 120, 512)
    """
    frequencies = np.array([(1 - score) ** 2, 2 * score * (1 - score), score**2])
    decides = _betting if sequential else _student_t
    return _first(lambda prompts: decides(frequencies * prompts, alpha, threshold))


def _betting(counts: np.ndarray, alpha: float, threshold: float) -> bool:
    sides = (log_capital(_SHARES, counts, threshold), log_capital(1 - _SHARES, counts, 1 - threshold))
    return bool(max(sides) >= log_threshold(alpha))


def _student_t(counts: np.ndarray, alpha: float, threshold: float) -> bool:
    prompts = round(float(counts.sum()))
    low, high = mean_interval(float(counts @ _SHARES), float(counts @ _SHARES**2), prompts, 1 - alpha)
    return not low <= threshold <= high


def _first(holds: Callable[[int], bool]) -> int:
    """The first number for which it holds, where it holds from there on."""
    above = 1
    while above < _MOST and not holds(above):
        above *= 2
    below = above // 2
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if holds(middle) else (middle, above)
    return min(above, _MOST)
