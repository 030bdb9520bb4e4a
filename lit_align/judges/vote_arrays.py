"""Arrays of votes between the candidates of a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

ABSTAINED = math.nan
"""The verdict of a judge that cannot decide. It must never invent a score instead."""


def votes_from_scores(on: Sequence[float], off: Sequence[float]) -> np.ndarray:
    """Turns scores into votes [K_on, K_off] float64: 1 if the on-policy score is higher, 0.5 for a tie, NaN for NaN."""
    a = np.asarray(on, dtype=np.float64)[:, None]
    b = np.asarray(off, dtype=np.float64)[None, :]
    votes = 0.5 * ((a > b).astype(np.float64) + (a >= b))
    votes[np.isnan(a) | np.isnan(b)] = ABSTAINED
    return votes


def graded_votes(on: Sequence[float], off: Sequence[float]) -> np.ndarray:
    """Turns scores into graded votes [K_on, K_off] float64 in [0, 1]: margins relative to the range of all scores.

    0.5 + (on - off) / (2 * range), so the judge's scale does not matter: if the best score is on-policy and the worst
    off-policy, their vote is 1. Equal scores give 0.5, NaN gives NaN. An infinite score leaves no range; the votes
    are those of :func:`votes_from_scores` then.
    """
    a = np.asarray(on, dtype=np.float64)[:, None]
    b = np.asarray(off, dtype=np.float64)[None, :]
    scores = np.concatenate([a.ravel(), b.ravel()])
    scores = scores[~np.isnan(scores)]
    if np.isinf(scores).any() or not scores.size:
        return votes_from_scores(on, off)
    span = scores.max() - scores.min()
    return np.where(np.isnan(a - b), ABSTAINED, 0.5 + (a - b) / (2 * span) if span else 0.5)


def mean_of_opponents(block: np.ndarray, alone: float) -> list[float]:
    """Averages each row's votes off the diagonal, without abstentions.

    Args:
        block: [K, K], NaN if the judge abstained; the diagonal has no meaning.
        alone: the result for a candidate without opponents.

    Returns:
        K numbers; NaN for a candidate if the judge abstained from all its comparisons.
    """
    if len(block) == 1:
        return [alone]
    counted = ~np.isnan(block) & ~np.eye(len(block), dtype=bool)
    counts = counted.sum(1)
    sums = np.where(counted, block, 0.0).sum(1)
    return [float(s / c) if c else ABSTAINED for s, c in zip(sums, counts, strict=True)]
