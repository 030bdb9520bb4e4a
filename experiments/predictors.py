"""Cheap predictions of which source will pay, each computed from a starting point's measurement alone.

A predictor gives a number: above 0 it says that on-policy pairs will bring more.
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
    """The boundary score less 0.5, ties half a vote."""
    return fmean(share for one in start.votes if (share := one.share) is not None) - 0.5


def without_ties(start: Start) -> float:
    """V_on / (V_on + V_off) less 0.5, over all prompts together."""
    on, off = sum(one.on for one in start.votes), sum(one.off for one in start.votes)
    return on / (on + off) - 0.5 if on + off else 0.0


def graded_margin(start: Start) -> float:
    """Mean on-policy score less mean static score."""
    return fmean(map(fmean, start.on)) - fmean(map(fmean, start.off))


def relative_margin(start: Start) -> float:
    """The margin of each prompt in halves of the range of its scores: in [-0.5, 0.5] whatever the judge's scale."""
    return fmean(map(_relative, start.on, start.off))


def _relative(on: Sequence[float], off: Sequence[float]) -> float:
    span = max(*on, *off) - min(*on, *off)
    return (fmean(on) - fmean(off)) / (2 * span) if span else 0.0


def best_against_best(start: Start) -> float:
    """The share of prompts whose best on-policy answer beats the best static one, ties half, less 0.5."""
    return fmean((max(a) > max(b)) + (max(a) == max(b)) / 2 for a, b in zip(start.on, start.off, strict=True)) - 0.5


def chosen_margin(start: Start) -> float:
    """How much better the on-policy chosen answers are than the static ones, on prompts that give a pair."""
    on, off = [max(a) for a in start.on if _pair(a)], [max(b) for b in start.off if _pair(b)]
    return (fmean(on) if on else 0.0) - (fmean(off) if off else 0.0)


def contrast(start: Start) -> float:
    """Best less worst score, on-policy less static."""
    return fmean(max(a) - min(a) for a in start.on) - fmean(max(b) - min(b) for b in start.off)


def by_yield(start: Start) -> float:
    """The boundary score weighted by each side's pairs a prompt: s y_on / (s y_on + (1 - s) y_off) - 0.5."""
    return _weighted(published(start) + 0.5, pair_yield(start.on), pair_yield(start.off))


def by_cost(cost_on: float, cost_off: float) -> Predictor:
    """The boundary score weighted by pairs a second. Costs are seconds a pair, at one pair a prompt for on-policy."""

    def predictor(start: Start) -> float:
        return _weighted(published(start) + 0.5, pair_yield(start.on) / cost_on, 1 / cost_off)

    return predictor


def figure(name: str, sign: int = 1) -> Predictor:
    """A characteristic (docs/characteristics.md), on-policy less static; `sign` -1 turns it round."""

    def predictor(start: Start) -> float:
        sides = start.decision.characteristics or {}
        if name not in sides.get("on_policy", {}) or name not in sides.get("off_policy", {}):
            return 0.0
        return sign * (sides["on_policy"][name] - sides["off_policy"][name])

    return predictor


def pair_yield(rows: Rows) -> float:
    """The share of prompts whose candidates differ in score, which give a pair."""
    return fmean(map(_pair, rows))


def _pair(scores: Sequence[float]) -> bool:
    return max(scores) > min(scores)


def _weighted(score: float, on: float, off: float) -> float:
    total = score * on + (1 - score) * off
    return score * on / total - 0.5 if total else 0.0


def all_predictors(forks: Sequence[Fork]) -> dict[str, Predictor]:
    """By the name that a table shows."""
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
    """The share of forks whose larger gain was foretold, with an interval over trajectories; 0 says off-policy."""

    def right(foretold: list[tuple[float, bool]]) -> float:
        return fmean((value > 0) == on_pays for value, on_pays in foretold) if foretold else math.nan

    return bootstrap(_foretold(predictor, label, forks), right)


def ranking(predictor: Predictor, label: Label, forks: Sequence[Fork]) -> Estimate:
    """The area under the ROC curve, which asks for no threshold, with an interval over trajectories."""

    def area(foretold: list[tuple[float, bool]]) -> float:
        return auc([value for value, _ in foretold], [on_pays for _, on_pays in foretold])

    return bootstrap(_foretold(predictor, label, forks), area)


def _foretold(predictor: Predictor, label: Label, forks: Sequence[Fork]) -> list[list[tuple[float, bool]]]:
    """Prediction and truth of each fork that has a truth, by trajectory."""
    groups: dict[tuple[str, int], list[tuple[float, bool]]] = {}
    for fork in forks:
        on_pays = label(fork)
        if on_pays is not None:
            groups.setdefault(fork.trajectory, []).append((predictor(fork.start), on_pays))
    return list(groups.values())
