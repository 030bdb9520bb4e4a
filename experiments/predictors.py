"""Cheap predictions of the better source, each computed only from the measurement of a starting point.

A predictor gives a number; above 0 it predicts a larger gain from on-policy pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from experiments.forks import Fork, Start
from experiments.stats import Estimate, auc, bootstrap

Predictor = Callable[[Start], float]
Label = Callable[[Fork], "bool | None"]
Rows = Sequence[Sequence[float]]


def published(start: Start) -> float:
    """Computes the boundary score minus 0.5, with ties as half a vote."""
    return fmean(share for votes in start.votes if (share := votes.share) is not None) - 0.5


def without_ties(start: Start) -> float:
    """Computes V_on / (V_on + V_off) - 0.5 over all prompts together."""
    on = sum(votes.on for votes in start.votes)
    off = sum(votes.off for votes in start.votes)
    return on / (on + off) - 0.5 if on + off else 0.0


def graded_margin(start: Start) -> float:
    """Computes the mean on-policy score minus the mean static score."""
    return fmean(map(fmean, start.on)) - fmean(map(fmean, start.off))


def relative_margin(start: Start) -> float:
    """Averages each prompt's margin over twice the range of its scores: in [-0.5, 0.5] whatever the judge's scale."""
    return fmean(map(_relative, start.on, start.off))


def _relative(on: Sequence[float], off: Sequence[float]) -> float:
    span = max(*on, *off) - min(*on, *off)
    return (fmean(on) - fmean(off)) / (2 * span) if span else 0.0


def best_against_best(start: Start) -> float:
    """Computes the share of prompts with a better best answer on-policy than static, ties half, minus 0.5."""
    return fmean((max(a) > max(b)) + (max(a) == max(b)) / 2 for a, b in zip(start.on, start.off, strict=True)) - 0.5


def chosen_margin(start: Start) -> float:
    """Computes the mean score of on-policy chosen answers minus that of static ones, over prompts that give a pair."""
    on = [max(scores) for scores in start.on if _gives_pair(scores)]
    off = [max(scores) for scores in start.off if _gives_pair(scores)]
    return (fmean(on) if on else 0.0) - (fmean(off) if off else 0.0)


def contrast(start: Start) -> float:
    """Computes the mean of best minus worst score, on-policy minus static."""
    return fmean(max(a) - min(a) for a in start.on) - fmean(max(b) - min(b) for b in start.off)


def by_yield(start: Start) -> float:
    """Weights the boundary score by each side's pairs per prompt: s y_on / (s y_on + (1 - s) y_off) - 0.5."""
    return _weighted(published(start) + 0.5, pair_yield(start.on), pair_yield(start.off))


def by_cost(cost_on: float, cost_off: float) -> Predictor:
    """Weights the boundary score by pairs per second.

    Args:
        cost_on: seconds per on-policy pair if each prompt gives one pair.
        cost_off: seconds per off-policy pair.
    """

    def predictor(start: Start) -> float:
        return _weighted(published(start) + 0.5, pair_yield(start.on) / cost_on, 1 / cost_off)

    return predictor


def figure(name: str, sign: int = 1) -> Predictor:
    """Compares a characteristic (docs/characteristics.md), on-policy minus static; `sign` -1 reverses it."""

    def predictor(start: Start) -> float:
        sides = start.decision.characteristics or {}
        if name not in sides.get("on_policy", {}) or name not in sides.get("off_policy", {}):
            return 0.0
        return sign * (sides["on_policy"][name] - sides["off_policy"][name])

    return predictor


def pair_yield(rows: Rows) -> float:
    """Computes the share of prompts with candidates of unequal score, which give a pair."""
    return fmean(map(_gives_pair, rows))


def _gives_pair(scores: Sequence[float]) -> bool:
    return max(scores) > min(scores)


def _weighted(score: float, on: float, off: float) -> float:
    total = score * on + (1 - score) * off
    return score * on / total - 0.5 if total else 0.0


def all_predictors(forks: Sequence[Fork]) -> dict[str, Predictor]:
    """Returns the predictors by the names that the tables show."""
    on = fmean(fork.on.seconds / fork.on.pairs for fork in forks)
    off = fmean(fork.off.seconds / fork.off.pairs for fork in forks)
    return {
        "boundary score, as published (ties half)": published,
        "boundary score, ties left out": without_ties,
        "boundary score, weighted by yield of pairs": by_yield,
        "boundary score, weighted by yield and cost": by_cost(on, off),
        "graded margin": graded_margin,
        "graded margin, relative to the prompt's range": relative_margin,
        "best on-policy against best static": best_against_best,
        "chosen on-policy against chosen static": chosen_margin,
        "contrast of best and worst": contrast,
        "diversity (distinct_2)": figure("distinct_2"),
        "diversity (ngram_difference)": figure("ngram_difference"),
        "quality (score_best)": figure("score_best"),
    }


def accuracy(predictor: Predictor, label: Label, forks: Sequence[Fork]) -> Estimate:
    """Computes the share of forks predicted right, with an interval over trajectories; 0 predicts off-policy."""

    def share_right(predictions: list[tuple[float, bool]]) -> float:
        return fmean((value > 0) == on_pays for value, on_pays in predictions) if predictions else math.nan

    return bootstrap(_predictions(predictor, label, forks), share_right)


def ranking(predictor: Predictor, label: Label, forks: Sequence[Fork]) -> Estimate:
    """Computes the area under the ROC curve, which needs no threshold, with an interval over trajectories."""

    def area(predictions: list[tuple[float, bool]]) -> float:
        return auc([value for value, _ in predictions], [on_pays for _, on_pays in predictions])

    return bootstrap(_predictions(predictor, label, forks), area)


def _predictions(predictor: Predictor, label: Label, forks: Sequence[Fork]) -> list[list[tuple[float, bool]]]:
    """Lists (prediction, truth) of each fork with a truth, grouped by trajectory."""
    groups: dict[tuple[str, int], list[tuple[float, bool]]] = {}
    for fork in forks:
        on_pays = label(fork)
        if on_pays is not None:
            groups.setdefault(fork.trajectory, []).append((predictor(fork.start), on_pays))
    return list(groups.values())
