"""The plots of the report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.crossing import Point, band, isotonic
from experiments.forks import Fork, Gauge
from experiments.predictors import accuracy, all_predictors, published
from experiments.runs import Run, mean_curve, shortest
from experiments.table import grouped

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#f0e442", "#000000", "#8b4513",
    "#7f00ff", "#a6d854", "#ff7f7f", "#1b4f72", "#b7950b", "#c0c0c0",
)  # fmt: skip
GUIDE: dict[str, Any] = {"color": "#999999", "linestyle": "--", "linewidth": 1, "zorder": 0}
RIGHT = "#e8f3ea"
"""Background of the areas with a right score."""


def forks_plot(forks: Sequence[Fork], gauge: Gauge) -> str:
    """Draws the gain difference of each fork over the score before: a score is right if both are on one side."""
    reach = max((abs(fork.difference.value) for fork in forks), default=0.1) * 1.1 or 0.1
    figure, axes = _subplot(f"Does the score tell which source pays? ({gauge})", "boundary score before", "on less off")
    axes.set(xlim=(0, 1), ylim=(-reach, reach))
    axes.fill_between([0, 0.5], -reach, 0, color=RIGHT, zorder=-1, label="shaded: the score is right")
    axes.fill_between([0.5, 1], 0, reach, color=RIGHT, zorder=-1)
    axes.axvline(0.5, **GUIDE)
    axes.axhline(0, **GUIDE)
    tasks = list(dict.fromkeys(fork.start.arm.task for fork in forks))
    for fork in forks:
        colour = COLOURS[tasks.index(fork.start.arm.task) % len(COLOURS)]
        fill = "white" if fork.loss == "slic" else colour
        score = published(fork.start) + 0.5
        axes.plot(score, fork.difference.value, "o", color=colour, markerfacecolor=fill, clip_on=False)
    for task, colour in zip(tasks, COLOURS, strict=False):
        axes.plot([], [], "o", color=colour, label=task)
    axes.plot([], [], "o", color="#555555", markerfacecolor="white", label="hollow: SLiC-HF")
    return _svg(figure)


def predictors_plot(forks_by_gauge: Mapping[Gauge, Sequence[Fork]]) -> str:
    """Draws how often each predictor is right at equal pairs, by gauge."""
    figure, axes = _subplot("Which predictor is right?", "share of forks predicted right", "", height=6)
    for number, (gauge, forks) in enumerate(forks_by_gauge.items()):
        predictors = all_predictors(forks)
        shares = [accuracy(predictor, lambda fork: fork.on_pays, forks) for predictor in predictors.values()]
        values, lows, highs = zip(*shares, strict=True)
        places = [place + (-0.2, 0.2)[number] for place in range(len(shares))]
        axes.hlines(places, lows, highs, color=COLOURS[number])
        axes.plot(values, places, "o", color=COLOURS[number], label=gauge, clip_on=False)
        axes.set_yticks(range(len(shares)), list(predictors))
    axes.set_xlim(0, 1)
    axes.axvline(0.5, **GUIDE)
    axes.invert_yaxis()
    return _svg(figure)


def runs_plot(runs: Sequence[Run], gauge: Gauge, title: str) -> str:
    """Draws the gain of whole runs over their seconds, averaged over seeds."""
    figure, axes = _subplot(f"{title} ({gauge})", "seconds of training, rounds and measurements", "gain")
    axes.axvline(shortest(runs), **GUIDE)
    for (name, group), colour in zip(grouped(runs, lambda run: run.name).items(), COLOURS, strict=False):
        seconds, gains = zip(*mean_curve(group, gauge), strict=True)
        axes.plot(seconds, gains, "o-", color=colour, label=f"{name}, seeds: {len(group)}")
    return _svg(figure)


def crossing_plot(points: Sequence[Point], name: str) -> str:
    """Draws forks over the score before, with the line and its band and the monotone fit."""
    figure, axes = _subplot(f"Where the better source changes ({name})", "score before", "on less off")
    scores = np.linspace(min(point.score for point in points), max(point.score for point in points), 25).tolist()
    values, lows, highs = zip(*band(points, scores), strict=True)
    axes.axvline(0.5, **GUIDE)
    axes.axhline(0, **GUIDE)
    axes.fill_between(scores, lows, highs, color=RIGHT, label="its 95 % band")
    axes.plot(scores, values, color=COLOURS[0], label="line")
    axes.step(*zip(*isotonic(points), strict=True), where="mid", color=COLOURS[1], label="monotone fit")
    for decided, fill in ((True, "#555555"), (False, "white")):
        of_kind = [point for point in points if point.decided is decided]
        label = f"fork, score {'decided' if decided else 'undecided'}"
        axes.plot(
            [point.score for point in of_kind], [point.difference for point in of_kind], "o", color="#555555",
            markerfacecolor=fill, markersize=4, label=label,
        )  # fmt: skip
    return _svg(figure)


def _subplot(title: str, x: str, y: str, height: float = 4.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    figure.legend(loc="outside right upper", frameon=False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lit-align"}):  # the same file for the same records
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
