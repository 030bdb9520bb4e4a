"""The win rate at equal lengths: what it would be if neither side's answers were longer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_align.boundary.interval import student_t_quantile

_PRIOR_DEVIATION = 2.5  # of the coefficient of length; e^2.5 = 12 in odds: weak
_PRIOR = np.diag([0.0, 1 / _PRIOR_DEVIATION**2])  # its precision: only the coefficient of length has a prior
_CONVERGED = 1e-10
_MOST_STEPS = 100


@dataclass(frozen=True)
class LengthControlled:
    """A win rate at equal lengths.

    Args:
        score: it, in [0, 1].
        low: lower end of its confidence interval.
        high: upper end.
        coefficient: the log-odds by which a much longer answer gains: above 0 the judge prefers longer answers.
    """

    score: float
    low: float
    high: float
    coefficient: float


def control_length(shares: Sequence[float], differences: Sequence[float], confidence: float = 0.95) -> LengthControlled:
    """Fits a logistic regression of the verdicts on the difference of lengths, and predicts at a difference of 0.

    logit P(first wins) = theta + phi tanh(d / sd(d)), where d is the first answer's length minus the second's, as in
    Eq. 2 of arXiv 2404.04475 ("Length-Controlled AlpacaEval"). It differs from that in three ways. There is no term
    for how hard an instruction is: that is estimated from the answers of many models to AlpacaEval's own instructions.
    phi has a normal prior of deviation 2.5 in place of a penalty that cross-validation chooses, so that few prompts
    give a finite value. And there is an interval: a sandwich estimate with Student's t on the log-odds, with one win
    and one loss at d = 0 added, as :func:`~lit_align.boundary.interval.mean_interval` does.

    Without any difference of lengths the score is the win rate itself. Where one side is longer throughout, nothing
    in the data tells skill from length, and the interval is as wide as the prior makes it.

    Args:
        shares: of each prompt the verdict on the first side: 1 for a win, 0.5 for a tie, 0 for a loss.
        differences: of each prompt the first side's length minus the second's, in any unit.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: there are no prompts, or not as many differences as shares.

    Example:
        >>> control_length([1.0, 1.0, 0.0, 0.0], [0, 0, 0, 0]).score
        0.5
        >>> longer_wins = control_length([1.0] * 6 + [0.0] * 2, [50, 60, 40, 70, 55, 45, -50, -60])
        >>> longer_wins.score < 0.75 and longer_wins.coefficient > 0
        True
    """
    if not len(shares) or len(shares) != len(differences):
        raise ValueError(f"expected a difference of lengths for each share, got {len(differences)} and {len(shares)}")
    won = np.asarray(shares, dtype=np.float64)
    x = _standardize(np.asarray(differences, dtype=np.float64))
    if won.min() == won.max() in (0.0, 1.0):  # no finite theta fits best
        score, coefficient = float(won[0]), 0.0
    else:
        theta, coefficient = _fit(won, x)
        score = _logistic(theta)
    low, high = _interval(won, x, confidence)
    return LengthControlled(score, min(score, low), max(score, high), coefficient)


def _standardize(differences: np.ndarray) -> np.ndarray:
    """tanh(d / sd(d)), in (-1, 1); all 0 where the differences do not vary around 0."""
    spread = math.sqrt(float(np.mean(differences**2)))
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    scale = deviation or spread
    return np.tanh(differences / scale) if scale else np.zeros_like(differences)


def _fit(won: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """(theta, phi) of the largest posterior, by Newton's method with halved steps."""
    design = np.stack([np.ones_like(x), x], 1)  # [N, 2]
    weights = np.zeros(2)
    for _ in range(_MOST_STEPS):
        gradient = design.T @ (won - _chances(design, weights)) - _PRIOR @ weights
        step = np.linalg.solve(_curvature(design, weights), gradient)
        before = _objective(design, won, weights)
        while _objective(design, won, weights + step) < before and abs(step).max() > _CONVERGED:
            step = step / 2
        weights = weights + step
        if abs(step).max() <= _CONVERGED:
            break
    return float(weights[0]), float(weights[1])


def _interval(won: np.ndarray, x: np.ndarray, confidence: float) -> tuple[float, float]:
    """The sandwich interval of the prediction at x = 0, with a win and a loss at x = 0 added."""
    won = np.concatenate([won, [0.0, 1.0]])
    x = np.concatenate([x, [0.0, 0.0]])
    weights = np.array(_fit(won, x))
    design = np.stack([np.ones_like(x), x], 1)
    bread = np.linalg.inv(_curvature(design, weights))
    scores = design * (won - _chances(design, weights))[:, None]
    degrees = len(won) - design.shape[1]
    meat = scores.T @ scores * len(won) / degrees + _PRIOR  # the prior is an observation with its own variance
    half = student_t_quantile((1 + confidence) / 2, degrees) * math.sqrt((bread @ meat @ bread)[0, 0])
    return _logistic(weights[0] - half), _logistic(weights[0] + half)


def _chances(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -(design @ weights)))


def _curvature(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    chances = _chances(design, weights)
    return (design * (chances * (1 - chances))[:, None]).T @ design + _PRIOR


def _objective(design: np.ndarray, won: np.ndarray, weights: np.ndarray) -> float:
    """The log-posterior, but for a constant."""
    logits = design @ weights
    fit = won @ -np.logaddexp(0.0, -logits) + (1 - won) @ -np.logaddexp(0.0, logits)
    return float(fit - weights @ _PRIOR @ weights / 2)


def _logistic(logit: float) -> float:
    return 0.5 + 0.5 * math.tanh(logit / 2)
