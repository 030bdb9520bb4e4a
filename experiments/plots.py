"""The plots of the report as SVG, written by hand: points, lines and bars with an interval are all they need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import fmean

from experiments.arm import Arm
from experiments.forks import Fork, Gauge, Record
from experiments.predictors import accuracy, all_predictors, published
from experiments.runs import curve, runs_of, shortest

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#f0e442", "#000000", "#8b4513",
)  # fmt: skip
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50


@dataclass
class Plot:
    """Axes, and what is drawn between them.

    Args:
        title: above.
        x: label and ends of the horizontal axis.
        y: label and ends of the vertical axis.
        width: of the whole picture in pixels.
        height: likewise.
        margin: at the right, for the legend.
    """

    title: str
    x: tuple[str, float, float]
    y: tuple[str, float, float]
    width: int = 760
    height: int = 420
    margin: int = RIGHT
    parts: list[str] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        _, x0, x1 = self.x
        _, y0, y1 = self.y
        across, up = (x - x0) / ((x1 - x0) or 1), (y - y0) / ((y1 - y0) or 1)
        right, bottom = self.width - self.margin, self.height - BOTTOM
        return round(LEFT + across * (right - LEFT), 1), round(bottom - up * (bottom - TOP), 1)

    def point(self, x: float, y: float, colour: str, hollow: bool = False) -> None:
        cx, cy = self.at(x, y)
        fill = "white" if hollow else colour
        self.parts.append(f'<circle cx="{cx}" cy="{cy}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>')

    def line(self, points: Sequence[tuple[float, float]], colour: str, dashes: str = "none") -> None:
        path = " ".join(f"{x},{y}" for x, y in (self.at(*point) for point in points))
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        )

    def shade(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """A pale rectangle between two points."""
        (left, bottom), (right, top) = self.at(x0, y0), self.at(x1, y1)
        size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
        self.parts.append(f'<rect x="{left}" y="{top}" {size} fill="#e8f3ea"/>')

    def text(self, x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> None:
        """A text at a pixel."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>')

    def name(self, text: str, colour: str, hollow: bool = False) -> None:
        """A line of the legend."""
        y = TOP + 18 * len(self.legend) + 6
        fill = "white" if hollow else colour
        mark = f'<circle cx="{self.width - self.margin + 18}" cy="{y}" r="4.5" fill="{fill}" stroke="{colour}"/>'
        self.legend.append(f'{mark}<text x="{self.width - self.margin + 28}" y="{y + 4}">{escape(text)}</text>')

    def svg(self) -> str:
        """The picture."""
        axes = Plot(self.title, self.x, self.y, self.width, self.height, self.margin)
        right, bottom = self.width - self.margin, self.height - BOTTOM
        axes.parts.append(f'<path d="M{LEFT},{TOP} V{bottom} H{right}" fill="none" stroke="#222"/>')
        for value in ticks(*self.x[1:]):
            axes.text(axes.at(value, self.y[1])[0], bottom + 18, f"{value:g}", "middle")
        for value in ticks(*self.y[1:]) if self.y[0] else ():  # rows without a unit have names instead
            axes.text(LEFT - 8, axes.at(self.x[1], value)[1] + 4, f"{value:g}", "end")
        axes.text((LEFT + right) / 2, self.height - 10, self.x[0], "middle")
        axes.text(LEFT - 50, TOP - 10, self.y[0])
        axes.text(LEFT - 50, 16, self.title, colour="#000")
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" font-size="12"'
        body = "\n".join([*self.parts, *axes.parts, *self.legend])
        return f'{head} font-family="sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two ends."""
    if not high > low:
        return [low]
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(size * m for m in (1, 2, 5, 10) if (high - low) / (size * m) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def forks_plot(forks: Sequence[Fork], gauge: Gauge) -> str:
    """Score before against what on-policy pairs brought more: right where both are on the same side."""
    reach = max((abs(fork.difference.value) for fork in forks), default=0.1) * 1.1 or 0.1
    title, y = f"Does the score tell which source pays? ({gauge})", ("on less off", -reach, reach)
    plot = Plot(title, ("boundary score before", 0, 1), y)
    plot.shade(0, -reach, 0.5, 0)
    plot.shade(0.5, 0, 1, reach)
    plot.line([(0.5, -reach), (0.5, reach)], "#999", "4")
    plot.line([(0, 0), (1, 0)], "#999", "4")
    tasks = list(dict.fromkeys(fork.start.arm.task for fork in forks))
    for fork in forks:
        colour = COLOURS[tasks.index(fork.start.arm.task) % len(COLOURS)]
        plot.point(published(fork.start) + 0.5, fork.difference.value, colour, hollow=fork.loss == "slic")
    for task, colour in zip(tasks, COLOURS, strict=False):
        plot.name(task, colour)
    plot.name("hollow: SLiC-HF", "#555", hollow=True)
    plot.name("shaded: the score is right", "#b9d9c0")
    return plot.svg()


def predictors_plot(forks: Mapping[Gauge, Sequence[Fork]]) -> str:
    """How often each predictor is right at equal pairs, by gauge."""
    names = list(all_predictors(next(iter(forks.values()))))
    count = len(names)
    marks = ", ".join(f"{mark}: {gauge}" for mark, gauge in zip(("solid", "hollow"), forks, strict=False))
    plot = Plot(
        f"Which figure tells? ({marks})",
        ("share of forks foretold", 0, 1), ("", 0, count), width=900, height=90 + 30 * count, margin=330,
    )  # fmt: skip
    plot.line([(0.5, 0), (0.5, count)], "#999", "4")
    for hollow, some in enumerate(forks.values()):
        for place, (name, predictor) in enumerate(all_predictors(some).items()):
            one, y = accuracy(predictor, lambda f: f.on_pays, some), count - place - (0.3, 0.7)[hollow]
            if not math.isnan(one.low):
                plot.line([(one.low, y), (one.high, y)], COLOURS[hollow])
            if not math.isnan(one.value):
                plot.point(one.value, y, COLOURS[hollow], hollow=bool(hollow))
            if not hollow:
                plot.text(plot.width - plot.margin + 10, plot.at(1, count - place - 0.5)[1] + 4, name)
    return plot.svg()


def runs_plot(records: Mapping[Arm, Record], task: str, gauge: Gauge) -> str:
    """The gain of whole runs over their seconds, mean over seeds."""
    groups: dict[str, list[list[tuple[float, float]]]] = {}
    for arm in runs_of(records):
        if arm.task == task:
            groups.setdefault(arm.schedule, []).append(curve(arm, records, gauge))
    means = {name: mean_curve(some) for name, some in groups.items()}
    ends = [point for line in means.values() for point in line]
    low, high = min(y for _, y in ends), max(y for _, y in ends)
    last = max(x for x, _ in ends)
    x, y = ("seconds of training, rounds and measurements", 0, last), ("gain", low, high)
    plot = Plot(f"Whole runs: {task} ({gauge})", x, y, width=900)
    plot.line([(shortest(records, task), low), (shortest(records, task), high)], "#999", "4")
    for (name, line), colour in zip(means.items(), COLOURS, strict=False):
        plot.line(line, colour)
        for point in line[1:]:
            plot.point(*point, colour)
        plot.name(f"{name}, seeds: {len(groups[name])}", colour)
    return plot.svg()


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Point by point; curves of one schedule are evaluated at the same steps."""
    return [(fmean(x for x, _ in points), fmean(y for _, y in points)) for points in zip(*curves, strict=True)]
