"""At which boundary score the better source changes: a line and a monotone step function through all forks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, linear_regression
from typing import NamedTuple

from experiments.forks import Fork
from experiments.predictors import Predictor, published, relative_margin
from experiments.stats import Estimate, bootstrap, wilson
from experiments.table import Table, grouped, signed

AT = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Scores at which the line is written down."""


class Point(NamedTuple):
    """A fork as a point.

    Args:
        trajectory: task and seed; forks of one trajectory are dependent.
        score: the score before, in [0, 1].
        difference: gain from on-policy pairs less gain from off-policy pairs.
        decided: whether 0.5 lay outside the score's interval.
    """

    trajectory: tuple[str, int]
    score: float
    difference: float
    decided: bool


def points_of(forks: Sequence[Fork], predictor: Predictor = published) -> list[Point]:
    """Places forks by a score: the votes, or with `relative_margin` the graded margins."""
    return [
        Point(fork.trajectory, predictor(fork.start) + 0.5, fork.difference.value, fork.start.decision.decided)
        for fork in forks
    ]


def all_points(by_gauge: Mapping[str, Sequence[Fork]]) -> dict[str, list[Point]]:
    """Places forks by votes and by graded margins, for each gauge."""
    places = {"votes": published, "graded margins": relative_margin}
    return {
        f"{name}, {gauge}": points_of(forks, predictor)
        for gauge, forks in by_gauge.items()
        for name, predictor in places.items()
    }


def line_crossing(points: Sequence[Point]) -> float:
    """Returns the score at which the least-squares line is 0; NaN where it does not rise."""
    slope, intercept = _line(points)
    return -intercept / slope if slope > 0 else math.nan


def isotonic(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Fits a function that never falls, by pooling adjacent violators.

    Returns:
        (score, value) of each point, by rising score; equal scores have equal values.
    """
    scores = grouped(sorted(points, key=lambda point: point.score), lambda point: point.score)
    blocks: list[list[Point]] = []
    for group in scores.values():
        blocks.append(group)
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] = blocks[-1] + last
    return [(point.score, _mean(block)) for block in blocks for point in block]


def isotonic_crossing(points: Sequence[Point]) -> float:
    """Returns the middle between the last score with a fit below 0 and the first one from 0 on; NaN without both."""
    fit = isotonic(points)
    below = [score for score, value in fit if value < 0]
    above = [score for score, value in fit if value >= 0]
    return (below[-1] + above[0]) / 2 if below and above else math.nan


def crossing_table(points_by_name: Mapping[str, Sequence[Point]]) -> Table:
    """Says where on less off crosses 0."""
    rows = []
    for name, points in points_by_name.items():
        clusters = _trajectories(points)
        at = [signed(bootstrap(clusters, lambda sample, x=x: _value(sample, x))) for x in AT]  # type: ignore[misc]
        line, steps = (bootstrap(clusters, crossing) for crossing in (line_crossing, isotonic_crossing))
        rows.append([name, str(len(points)), str(line), str(steps), *at])
    header = ("score, gauge", "forks", "crosses 0, line", "crosses 0, monotone", *(f"line at {x:g}" for x in AT))
    note = (
        "On less off as a function of the score before. Bootstrap intervals of 95 % over trajectories (task, seed); "
        "the line is the least-squares line."
    )
    return Table("Where the better source changes", note, header, rows)


def decided_table(points_by_name: Mapping[str, Sequence[Point]]) -> Table:
    """Counts how often the score is right, for decided measurements by themselves."""
    rows = []
    for name, points in points_by_name.items():
        unequal = [point for point in points if point.difference]
        groups = {
            "all": unequal,
            "decided (0.5 outside the interval)": [point for point in unequal if point.decided],
            "undecided": [point for point in unequal if not point.decided],
        }
        for group, members in groups.items():
            right = sum((point.score >= 0.5) == (point.difference > 0) for point in members)
            on = sum(point.difference > 0 for point in members)
            share = wilson(right, len(members))
            rows.append([name, group, str(len(members)), str(right), str(share), str(on), str(len(members) - on)])
    header = ("score, gauge", "measurements", "forks", "right", "share right", "always on", "always off")
    note = "Wilson's intervals of 95 %, as if forks were independent; right, had it always said on or off, beside it."
    return Table("Decided measurements", note, header, rows)


def band(points: Sequence[Point], scores: Sequence[float]) -> list[Estimate]:
    """The line with its bootstrap band at some scores."""
    clusters = _trajectories(points)
    return [bootstrap(clusters, lambda sample, x=x: _value(sample, x)) for x in scores]  # type: ignore[misc]


def _line(points: Sequence[Point]) -> tuple[float, float]:
    """Slope and intercept; a flat line where all scores are equal."""
    scores = [point.score for point in points]
    if len(set(scores)) < 2:
        return 0.0, _mean(points)
    line = linear_regression(scores, [point.difference for point in points])
    return line.slope, line.intercept


def _value(points: Sequence[Point], score: float) -> float:
    slope, intercept = _line(points)
    return intercept + slope * score


def _mean(points: Sequence[Point]) -> float:
    return fmean(point.difference for point in points)


def _trajectories(points: Sequence[Point]) -> list[list[Point]]:
    return list(grouped(points, lambda point: point.trajectory).values())
