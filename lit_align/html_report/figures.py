"""The stage over time, both sources, the judge, and the answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lit_align.boundary.result import BOUNDARY, Decision
from lit_align.html_report.lines import run_colour, run_dash, source_colour
from lit_align.html_report.palette import (
    CHOSEN,
    INK,
    LINE,
    OFF_POLICY,
    ON_POLICY,
    ON_POLICY_TINT,
    QUIET,
    REJECTED,
    blank_figure,
    dress,
)  # fmt: skip
from lit_align.html_report.record import RunRecord
from lit_align.html_report.thin import thin

ROUNDS = {
    "mean_score": ("On-policy rounds: score", "Mean score of the answers that each round sampled."),
    "yield": ("On-policy rounds: yield", "Pairs that each sampled answer gave; ties and duplicates give none."),
}
"""Numbers of each on-policy round: title and note."""

ENDS = {
    "decided": "stopped by decision",
    "budget": "stopped by budget (max_prompts)",
    "pool": "stopped: no more prompts",
}
"""What ended a measurement."""
_UNDECIDED = {"budget": "square-open", "pool": "diamond-open"}

FIGURES = {
    "score_mean": ("Score of the judge, mean", "Quality: what the judge thinks of a source's answers."),
    "score_best": ("Score of the judge, best", "Of the best answer to each prompt."),
    "distinct_2": ("Distinct word pairs", "Diversity: share of different word pairs among the answers to a prompt."),
    "self_bleu": ("Self-BLEU", "How much the answers to a prompt repeat each other; lower is more diverse."),
    "near_duplicates": ("Near duplicates", "Share of answers that nearly repeat another one to the same prompt."),
    "length_mean": ("Length", "Mean words of an answer."),
}
"""Figures of both sides at each decision (docs/characteristics.md): title and note."""


def measured(run: RunRecord) -> list[Decision]:
    """The decisions with a score behind them."""
    return [decision for decision in run.decisions if decision.measured]


def stage_figure(run: RunRecord) -> go.Figure | None:
    """Each boundary score with its interval over time, above the share of on-policy pairs; None without decisions."""
    if not run.decisions:
        return None
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.06)
    dress(figure, 420)
    end = max(run.steps, run.decisions[-1].step + 1)
    _add_stages(figure, run, end)
    _add_scores(figure, measured(run))
    _add_share(figure, run, end)
    figure.update_xaxes(title_text="optimizer step", row=2, col=1)
    figure.update_xaxes(range=[-0.02 * end, 1.02 * end])
    figure.update_yaxes(range=[-0.03, 1.03], title_text="boundary score", tickformat=".1f", row=1, col=1)
    figure.update_yaxes(range=[-0.06, 1.06], title_text="on-policy", tickformat=".0%", nticks=3, row=2, col=1)
    figure.update_layout(hovermode="closest")
    return figure


def _add_stages(figure: go.Figure, run: RunRecord, end: int) -> None:
    """Tints the time on each source in its colour, and marks the threshold."""
    changes = [run.decisions[0], *run.swaps]
    ends = [*(decision.step for decision in run.swaps), end]
    bands = [
        {
            "type": "rect", "x0": decision.step, "x1": until, "y0": 0, "y1": 1, "xref": "x", "yref": "y domain",
            "line": {"width": 0}, "fillcolor": source_colour(decision), "opacity": 0.08, "layer": "below",
        }
        for decision, until in zip(changes, ends, strict=True)
    ]  # fmt: skip
    figure.update_layout(shapes=[*bands, _line_at(next((d.threshold for d in run.decisions if d.measured), BOUNDARY))])


def _line_at(value: float) -> dict[str, Any]:
    """A dashed line across the figure."""
    return {
        "type": "line", "x0": 0, "x1": 1, "xref": "x domain", "y0": value, "y1": value, "yref": "y",
        "line": {"width": 1.5, "dash": "dash", "color": QUIET}, "layer": "below",
    }  # fmt: skip


def _add_scores(figure: go.Figure, decisions: Sequence[Decision]) -> None:
    if not decisions:
        return
    figure.add_scatter(
        x=[decision.step for decision in decisions], y=[decision.score for decision in decisions], mode="lines",
        line={"color": QUIET, "width": 1}, hoverinfo="skip", showlegend=False, row=1, col=1,
    )  # fmt: skip
    for end, label in ENDS.items():
        ended = [decision for decision in decisions if (decision.stopped or "budget") == end]
        if ended:
            _add_ended(figure, ended, label, _UNDECIDED.get(end, "circle"))


def _add_ended(figure: go.Figure, decisions: Sequence[Decision], label: str, symbol: str) -> None:
    scores = np.array([decision.score for decision in decisions])
    highs = np.array([decision.high for decision in decisions])
    lows = np.array([decision.low for decision in decisions])
    figure.add_scatter(
        x=[decision.step for decision in decisions], y=scores, mode="markers", name=label,
        error_y={
            "type": "data", "symmetric": False, "array": highs - scores, "arrayminus": scores - lows,
            "color": INK, "thickness": 1.4, "width": 4,
        },
        marker={"symbol": symbol, "size": 9, "color": INK, "line": {"width": 2, "color": INK}},
        customdata=[[d.low, d.high, d.prompts, d.on_policy_share] for d in decisions],
        hovertemplate="step %{x}: score %{y:.3f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})<br>"
        "%{customdata[2]} prompts, then on-policy share %{customdata[3]:.0%}<extra></extra>",
        row=1, col=1,
    )  # fmt: skip


def _add_share(figure: go.Figure, run: RunRecord, end: int) -> None:
    steps = [decision.step for decision in run.decisions]
    shares = [decision.on_policy_share for decision in run.decisions]
    figure.add_scatter(
        x=[*steps, end], y=[*shares, shares[-1]], mode="lines", name="on-policy share", fill="tozeroy",
        fillcolor=ON_POLICY_TINT,
        line={"color": ON_POLICY, "width": 2, "shape": "hv"}, hovertemplate="%{y:.0%} on-policy<extra></extra>",
        showlegend=False, row=2, col=1,
    )  # fmt: skip


def sides_figure(run: RunRecord, figure_name: str) -> go.Figure | None:
    """One figure of quality or diversity, of both sources at each decision; None where it was not measured."""
    figure = blank_figure(220)
    for side, label, colour, symbol in (
        ("on_policy", "on-policy", ON_POLICY, "circle"), ("off_policy", "off-policy", OFF_POLICY, "diamond"),
    ):  # fmt: skip
        points = _points_of(measured(run), side, figure_name)
        if points:
            figure.add_scatter(
                x=[step for step, _ in points], y=[value for _, value in points], name=label, mode="lines+markers",
                line={"color": colour, "width": 2}, marker={"size": 7, "symbol": symbol}, hovertemplate="%{y:.3g}",
            )  # fmt: skip
    return figure if figure.data else None


def _points_of(decisions: Sequence[Decision], side: str, figure_name: str) -> list[tuple[int, float]]:
    points: list[tuple[int, float]] = []
    for decision in decisions:
        value = ((decision.characteristics or {}).get(side) or {}).get(figure_name)
        if value is not None and math.isfinite(value):
            points.append((decision.step, value))
    return points


def votes_figure(run: RunRecord) -> go.Figure | None:
    """How the votes of each measurement fell, as shares; None without measurements."""
    decisions = measured(run)
    if not decisions:
        return None
    figure = blank_figure(260, "measured at optimizer step")
    totals = [max(1, d.votes_on + d.votes_off + d.ties + (d.abstentions or 0)) for d in decisions]
    steps = [str(decision.step) for decision in decisions]
    for name, label, colour in (
        ("votes_on", "on-policy wins", ON_POLICY), ("ties", "tie", "#b9c2cb"),
        ("abstentions", "no verdict", QUIET), ("votes_off", "off-policy wins", OFF_POLICY),
    ):  # fmt: skip
        counts = [getattr(decision, name) or 0 for decision in decisions]
        if any(counts) or name in ("votes_on", "votes_off"):
            figure.add_bar(
                x=steps, y=[count / total for count, total in zip(counts, totals, strict=True)], name=label,
                marker={"color": colour, "line": {"width": 0}}, customdata=counts,
                hovertemplate="%{y:.0%} (%{customdata})",
            )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.4)
    figure.update_xaxes(type="category", nticks=12)
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    return figure


def round_figure(run: RunRecord, key: str) -> go.Figure | None:
    """A number of each on-policy round; None without rounds."""
    rounds = run.summary.get("rounds") or ()
    points = [(stats["step"], stats[key]) for stats in rounds if finite(stats.get("step")) and finite(stats.get(key))]
    if not points:
        return None
    figure = blank_figure(220)
    figure.add_scatter(
        x=[step for step, _ in points], y=[value for _, value in points], mode="lines+markers",
        line={"color": ON_POLICY, "width": 2}, marker={"size": 7}, hovertemplate="%{y:.3g}",
    )  # fmt: skip
    return figure.update_layout(margin_t=10)


def win_rates_figure(run: RunRecord) -> go.Figure | None:
    """The win rate against the start over time, as it is and at equal lengths; None where there are fewer than two."""
    results = [result for result in run.summary.get("win_rates") or () if finite(result.get("score"))]
    if len(results) < 2:
        return None
    figure = blank_figure(280)
    for name, label, colour, symbol in (
        ("score", "win rate", LINE, "circle"),
        ("length_controlled", "at equal lengths", QUIET, "square-open"),
    ):
        keys = ("step", name, "low", "high") if name == "score" else ("step", name, f"{name}_low", f"{name}_high")
        whole = [result for result in results if all(finite(result.get(key)) for key in keys)]
        if whole:
            steps, scores, lows, highs = (np.array([result[key] for result in whole]) for key in keys)
            figure.add_scatter(
                x=steps, y=scores, name=label, mode="lines+markers", line={"color": colour, "width": 2},
                marker={"size": 8, "symbol": symbol}, hovertemplate="%{y:.0%}",
                error_y={"type": "data", "symmetric": False, "array": highs - scores, "arrayminus": scores - lows,
                         "thickness": 1.2, "width": 3, "color": colour},
            )  # fmt: skip
    figure.update_layout(shapes=[_line_at(BOUNDARY)])
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    return figure


def change_figure(run: RunRecord) -> go.Figure | None:
    """The scores of the start's and of the end's answers to the same prompts; None without scores."""
    rows = [row for row in run.answers if finite(row.get("score_before")) and finite(row.get("score_after"))]
    if not rows:
        return None
    figure = blank_figure(280, "score of the answer before")
    before = [row["score_before"] for row in rows]
    after = [row["score_after"] for row in rows]
    ends = [min(before + after), max(before + after)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": QUIET, "width": 1, "dash": "dash"}, name="as good as before",
        hoverinfo="skip",
    )  # fmt: skip
    for label, colour, symbol, keep in (
        ("better after", CHOSEN, "triangle-up", lambda change: change > 0),
        ("the same", QUIET, "circle", lambda change: change == 0),
        ("worse after", REJECTED, "triangle-down-open", lambda change: change < 0),
    ):
        points = [(b, a) for b, a in zip(before, after, strict=True) if keep(a - b)]
        if points:
            figure.add_scatter(
                x=[b for b, _ in points], y=[a for _, a in points], mode="markers", name=label,
                marker={"color": colour, "symbol": symbol, "size": 9, "opacity": 0.75},
                hovertemplate="before %{x:.3g}, after %{y:.3g}<extra></extra>",
            )  # fmt: skip
    figure.update_layout(hovermode="closest")
    figure.update_yaxes(title_text="score of the answer after")
    return figure


def finite(value: Any) -> bool:
    """Whether a value read from a file is a number to draw."""
    return isinstance(value, int | float) and math.isfinite(value)


def scores_figure(runs: Sequence[RunRecord]) -> go.Figure | None:
    """The boundary scores of several runs; None where none was measured."""
    figure = blank_figure(300)
    for number, run in enumerate(runs):
        decisions = measured(run)
        if decisions:
            colour = run_colour(number)
            figure.add_scatter(
                x=[d.step for d in decisions], y=[d.score for d in decisions], name=run.name, mode="lines+markers",
                line={"color": colour, "width": 2, "dash": run_dash(number)}, hovertemplate="%{y:.3f}",
                error_y={
                    "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": colour,
                    "array": [d.high - d.score for d in decisions], "arrayminus": [d.score - d.low for d in decisions],
                },
            )  # fmt: skip
    if not figure.data:
        return None
    figure.update_layout(shapes=[_line_at(BOUNDARY)])
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".1f")
    figure.update_layout(showlegend=True)
    return figure


def share_figure(run: RunRecord) -> go.Figure | None:
    """The on-policy share of the pairs that were trained on, where there were no decisions; None without it."""
    series = run.metrics.get("on_policy_share")
    if series is None or run.decisions or not series.values.any():
        return None
    few = thin(series)
    figure = blank_figure(180)
    figure.add_scatter(x=few.steps, y=few.values, mode="lines", line={"color": ON_POLICY}, hovertemplate="%{y:.0%}")
    figure.update_yaxes(range=[0, 1.05], tickformat=".0%")
    return figure
