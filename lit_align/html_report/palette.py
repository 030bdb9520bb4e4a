"""The colours of a report, and the look that all its figures share."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

ON_POLICY = "#0b6bb8"
ON_POLICY_TINT = "rgba(11,107,184,0.18)"
OFF_POLICY = "#c8551b"
CHOSEN = "#0f7f6b"
REJECTED = "#9a3f86"
LINE = "#3b4754"
QUIET = "#8492a1"
GRID = "#e6e9ed"
INK = "#26323e"
RUNS = (LINE, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a8770a")
"""One for each run where several are compared: those of Okabe and Ito, dark enough for a white page."""

DARK = {
    ON_POLICY: "#5db2f7",
    ON_POLICY_TINT: "rgba(93,178,247,0.22)",
    OFF_POLICY: "#f39a60",
    CHOSEN: "#46c7ae",
    REJECTED: "#de90cf",
    LINE: "#c6cfd8",
    QUIET: "#7d8b99",
    GRID: "#2b333d",
    INK: "#dfe5ea",
    "#0072b2": "#56b4e9",
    "#d55e00": "#f0824a",
    "#009e73": "#3fc79a",
    "#cc79a7": "#e3a0c4",
    "#a8770a": "#e8b84a",
}
"""The same colour on a dark page."""

_AXIS: dict[str, Any] = {
    "gridcolor": GRID,
    "linecolor": GRID,
    "zeroline": False,
    "ticks": "",
    "automargin": True,
    "tickfont": {"size": 11, "color": QUIET},
    "title": {"font": {"size": 11, "color": QUIET}, "standoff": 6},
}
_LOOK = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12, "color": INK},
        "margin": {"l": 8, "r": 8, "t": 30, "b": 8},
        "hovermode": "x unified",
        "hoverlabel": {"font": {"size": 12}},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**_AXIS, "showgrid": False},
        "yaxis": _AXIS,
    }
)


def blank_figure(height: int = 260, x_title: str = "optimizer step") -> go.Figure:
    """A figure without traces that looks like all others of a report.

    Args:
        height: in pixels; the width is the page's.
        x_title: of the x axis.
    """
    return go.Figure(layout={"template": _LOOK, "height": height, "xaxis": {"title": {"text": x_title}}})


def dress(figure: go.Figure, height: int) -> go.Figure:
    """Gives a figure that was made elsewhere the look of a report."""
    return figure.update_layout(template=_LOOK, height=height)
