"""Metrics of training over optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from lit_align.boundary.result import Decision
from lit_align.html_report.palette import CHOSEN, LINE, OFF_POLICY, ON_POLICY, REJECTED, RUNS, blank_figure
from lit_align.html_report.reading import Series
from lit_align.html_report.record import RunRecord
from lit_align.html_report.thin import moving_mean, thin, window_of

HELD_OUT = "val/"


@dataclass(frozen=True)
class Line:
    """A metric in a chart.

    Args:
        metric: as loggers name it.
        label: in the legend.
        colour: on a light page.
        dash: "solid", "dash" or "dot".
    """

    metric: str
    label: str
    colour: str = LINE
    dash: str = "solid"


@dataclass(frozen=True)
class Chart:
    """A few metrics with one axis.

    Args:
        key: names the chart on the page.
        title: what is shown.
        lines: the metrics.
        unit: of the y axis.
        note: a sentence for readers who see it for the first time.
    """

    key: str
    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    note: str = ""


CHARTS = (
    Chart("loss", "Loss", (Line("loss", "training"),), note="Mean over the pairs of each optimizer step."),
    Chart(
        "accuracy",
        "Reward accuracy",
        (Line("rewards/accuracies", "training"),),
        note="Share of the pairs whose chosen answer has the higher reward. A swap brings new pairs, so it may fall.",
    ),
    Chart(
        "margins",
        "Reward margin",
        (Line("rewards/margins", "training"),),
        note="Chosen minus rejected reward.",
    ),
    Chart(
        "rewards",
        "Rewards",
        (Line("rewards/chosen", "chosen", CHOSEN), Line("rewards/rejected", "rejected", REJECTED, "dash")),
        note="As the loss defines them: for DPO, how much likelier an answer became than it is for the reference.",
    ),
    Chart(
        "logps",
        "Log-probs of the answers",
        (Line("logps/chosen", "chosen", CHOSEN), Line("logps/rejected", "rejected", REJECTED, "dash")),
        "nats an answer",
        "Both may fall: the loss asks only for a distance between the two, and what the policy takes from both goes to "
        "answers that are in no pair. It is bad only where the answers below get worse; an NLL term (RPO) holds the "
        "chosen ones up.",
    ),
    Chart(
        "kl",
        "Distance from the reference (KL)",
        (Line("kl", "on-policy pairs", ON_POLICY),),
        "nats an answer",
        "Estimated on the policy's own answers, so only where on-policy pairs are trained on.",
    ),
    Chart(
        "lengths",
        "Length of the answers",
        (Line("lengths/chosen", "chosen", CHOSEN), Line("lengths/rejected", "rejected", REJECTED, "dash")),
        "tokens",
        "Chosen answers that are longer all the time teach length.",
    ),
    Chart("lr", "Learning rate", (Line("lr", "learning rate"),)),
)
_HANDLED = ("boundary/", "win_rate/", "epoch", "on_policy_share", HELD_OUT)
_MOST_OTHERS = 24


def training_figure(run: RunRecord, chart: Chart) -> go.Figure | None:
    """A chart of one run, with its held-out values and the swaps of the source; None where nothing was logged."""
    figure = blank_figure()
    for line in chart.lines:
        add_line(figure, run.metrics.get(line.metric), line)
        held_out = run.metrics.get(HELD_OUT + line.metric)
        if held_out is not None:
            add_points(figure, held_out, f"held out: {line.label}" if len(chart.lines) > 1 else "held out", line.colour)
    if not figure.data:
        return None
    add_swaps(figure, run)
    figure.update_yaxes(title_text=chart.unit)
    named = [trace for trace in figure.data if trace.showlegend is not False]
    figure.update_layout(showlegend=len(named) > 1, margin_t=30 if len(named) > 1 else 10)
    return figure


def comparison_figure(runs: Sequence[RunRecord], metric: str, unit: str = "") -> go.Figure | None:
    """One metric of several runs; None where no run has it."""
    figure = blank_figure()
    for number, run in enumerate(runs):
        add_line(figure, run.metrics.get(metric), Line(metric, run.name, run_colour(number), run_dash(number)))
    figure.update_yaxes(title_text=unit)
    figure.update_layout(showlegend=True)
    return figure if figure.data else None


def run_colour(number: int) -> str:
    """The colour of a run among several."""
    return RUNS[number % len(RUNS)]


def run_dash(number: int) -> str:
    """The dash of a run among several, which tells runs apart where colours come again."""
    return ("solid", "dash", "dot")[number // len(RUNS) % 3]


def other_charts(run: RunRecord) -> list[Chart]:
    """Charts of what was logged beside the usual: the parts of a loss, and metrics of a user's own."""
    shown = {line.metric for chart in CHARTS for line in chart.lines}
    names = [name for name in sorted(run.metrics) if name not in shown and not name.startswith(_HANDLED)]
    held_out = {name.removeprefix(HELD_OUT) for name in run.metrics if name.startswith(HELD_OUT)}
    names += sorted(held_out - shown - set(names))
    return [Chart(f"other-{n}", name, (Line(name, "training"),)) for n, name in enumerate(names[:_MOST_OTHERS])]


def add_line(figure: go.Figure, series: Series | None, line: Line) -> None:
    """Adds a line: faint as it is, and strong as a moving mean where it is long."""
    if series is None:
        return
    window = window_of(series)
    style = {"color": line.colour, "width": 2, "dash": line.dash}
    if window == 1:
        figure.add_scatter(
            x=series.steps, y=series.values, name=line.label, mode="lines" if len(series.steps) > 1 else "markers",
            line=style, legendgroup=line.label, hovertemplate="%{y:.4g}",
        )  # fmt: skip
        return
    raw = thin(series)
    mean = thin(moving_mean(series, window))
    figure.add_scatter(
        x=raw.steps, y=raw.values, name=f"{line.label}, each step", mode="lines", opacity=0.28, showlegend=False,
        line={"color": line.colour, "width": 1}, legendgroup=line.label, hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=mean.steps, y=mean.values, name=line.label, mode="lines", line=style, legendgroup=line.label,
        hovertemplate="%{y:.4g}",
    )  # fmt: skip


def add_points(figure: go.Figure, series: Series, label: str, colour: str) -> None:
    """Adds values of few steps as points with a thin line between them."""
    few = thin(series)
    figure.add_scatter(
        x=few.steps, y=few.values, name=label, mode="lines+markers", hovertemplate="%{y:.4g}",
        line={"color": colour, "width": 1, "dash": "dot"},
        marker={"size": 7, "symbol": "circle-open", "color": colour},
    )  # fmt: skip


def add_swaps(figure: go.Figure, run: RunRecord) -> None:
    """Marks the steps at which the source of the data changed, in the colour of the source that came."""
    marks = [
        {
            "type": "line", "x0": decision.step, "x1": decision.step, "y0": 0, "y1": 1, "yref": "y domain",
            "line": {"width": 1, "dash": "dot", "color": source_colour(decision)}, "layer": "below",
        }
        for decision in run.swaps
    ]  # fmt: skip
    figure.update_layout(shapes=marks)


def source_colour(decision: Decision) -> str:
    """The colour of the source that most pairs come from after a decision."""
    return ON_POLICY if decision.on_policy_share >= 0.5 else OFF_POLICY
