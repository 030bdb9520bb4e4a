"""What each source has brought so far, from nothing but the answers that measurements judge anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

import numpy as np

from lit_align.boundary.result import BoundaryResult, Decision
from lit_align.boundary.votes import JudgedPrompt
from lit_align.records import CandidateSet


class Stretch(NamedTuple):
    """The training between two measurements, and what it brought.

    Args:
        share: share of on-policy pairs, in [0, 1].
        gain: rise of the policy's lead over the static answers, in the judge's units.
        error: standard error of the gain.
        cost: optimizer steps, or seconds of training, above 0.
    """

    share: float
    gain: float
    error: float
    cost: float


class Belief(NamedTuple):
    """What is believed of the gains by either source, per step or second.

    Args:
        on: expected gain by on-policy pairs.
        on_error: standard deviation of what is believed of it.
        off: expected gain by off-policy pairs.
        off_error: standard deviation of what is believed of it.
        on_better: the probability that on-policy pairs bring more, in [0, 1].
    """

    on: float
    on_error: float
    off: float
    off_error: float
    on_better: float


def with_lead(result: BoundaryResult, judged: Sequence[JudgedPrompt]) -> BoundaryResult:
    """Adds the policy's lead to the on-policy side's characteristics, as `lead` and `lead_error` (its standard error).

    The lead is the mean over prompts of (mean score of the policy's answers - mean score of the static ones): each
    measurement draws other prompts, and the static answers take out how hard these are. With fewer than two prompts
    that are scored on both sides there is none.

    Args:
        result: the measurement.
        judged: its prompts, with the scores of both sides.
    """
    leads = []
    for prompt in judged:
        on, off = _scores(prompt.on), _scores(prompt.off)
        if on and off:
            leads.append(fmean(on) - fmean(off))
    if len(leads) < 2:
        return result
    figures = {"lead": fmean(leads), "lead_error": stdev(leads) / math.sqrt(len(leads))}
    on_policy = {**result.characteristics.get("on_policy", {}), **figures}
    return replace(result, characteristics={**result.characteristics, "on_policy": on_policy})


def _scores(candidates: CandidateSet) -> list[float]:
    return [candidate.score for candidate in candidates.candidates if candidate.score is not None]


def stretches(
    history: Sequence[Decision], step: int, result: BoundaryResult, seconds: float | None = None
) -> list[Stretch]:
    """The training between each two measurements with a lead, oldest first.

    Args:
        history: the decisions so far, oldest first.
        step: optimizer step of the measurement at hand.
        result: the measurement at hand.
        seconds: seconds of training so far, to count the cost in seconds; None counts optimizer steps.
    """
    now = _standing(result, step if seconds is None else seconds)
    standings = [*_standings(history, seconds is not None), *([(0.0, now)] if now else [])]
    return [
        Stretch(share, end.lead - begin.lead, math.hypot(begin.error, end.error), end.cost - begin.cost)
        for (share, begin), (_, end) in pairwise(standings)
        if end.cost > begin.cost
    ]


class _Standing(NamedTuple):
    lead: float
    error: float
    cost: float


def _standings(history: Sequence[Decision], in_seconds: bool) -> list[tuple[float, _Standing]]:
    """The share that each decision chose, and how the policy stood then."""
    standings = []
    measuring = 0.0
    for decision in history:
        if decision.result is None:
            continue
        measuring += decision.result.seconds
        trained = measuring / decision.share_of_training if decision.share_of_training else 0.0
        standing = _standing(decision.result, trained if in_seconds else decision.step)
        if standing is not None:
            standings.append((decision.on_policy_share, standing))
    return standings


def _standing(result: BoundaryResult, cost: float) -> _Standing | None:
    figures = result.characteristics.get("on_policy", {})
    return _Standing(figures["lead"], figures["lead_error"], cost) if "lead" in figures else None


def score_says(result: BoundaryResult, trust: float) -> float:
    """The probability that on-policy pairs bring more, by the boundary score alone, in [1 - trust, trust].

    Args:
        result: the measurement; a quarter of its interval stands for the standard error of its score.
        trust: how often the side of the true score is right about the better source, in [0.5, 1).
    """
    spread = max((result.high - result.low) / 4, 1e-9)
    below = NormalDist(result.score, spread).cdf(result.threshold)
    return (1 - trust) * below + trust * (1 - below)


def believe(stretches: Sequence[Stretch], prior: float, memory: float) -> Belief | None:
    """Bayesian linear regression of the gains on the share of on-policy pairs; recent stretches count more.

    A stretch at share a is expected to bring a * (gain by on-policy pairs) + (1 - a) * (gain by off-policy pairs).
    Before the data, both gains are normal around the mean of all gains, with their root mean square as the standard
    deviation, and apart by as much as makes `prior` the probability that the first is larger: all in units of the
    gains themselves, so that the scale of the judge does not matter.

    Args:
        stretches: oldest first.
        prior: the probability that on-policy pairs bring more before any gain is known, in (0, 1).
        memory: measurements after which a stretch counts half, above 0.

    Returns:
        What is believed; None without a gain to learn from.
    """
    shares, gains, errors, costs = np.array(stretches, dtype=np.float64).reshape(-1, 4).T
    rates = gains / costs
    variances = (errors / costs) ** 2
    weights = 0.5 ** (np.arange(len(shares))[::-1] / memory)
    scale = math.sqrt(weights @ (rates**2 + variances) / weights.sum()) if len(shares) else 0.0
    if scale == 0:
        return None  # no stretch, or nothing has moved and that for certain
    apart = NormalDist().inv_cdf(prior) * math.sqrt(2) * scale
    before = weights @ rates / weights.sum() + np.array([apart, -apart]) / 2
    sources = np.stack([shares, 1 - shares], axis=1)
    precisions = weights / np.maximum(variances, 1e-12 * scale**2)
    covariance = np.linalg.inv(np.eye(2) / scale**2 + sources.T @ (precisions[:, None] * sources))
    on, off = covariance @ (before / scale**2 + sources.T @ (precisions * rates))
    spread = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    errors_after = np.sqrt(np.diag(covariance))
    better = NormalDist().cdf(float(on - off) / spread)
    return Belief(float(on), float(errors_after[0]), float(off), float(errors_after[1]), better)
