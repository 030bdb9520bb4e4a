"""The report of runs as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lit_align.escape import escape
from lit_align.files import written_whole
from lit_align.html_report import figures, lines, samples, tables
from lit_align.html_report.headline import Headline, headline
from lit_align.html_report.palette import DARK
from lit_align.html_report.record import RunRecord, read_run
from lit_align.html_report.thin import POINTS

COMPARED = (
    ("loss", "Loss", ""),
    ("rewards/accuracies", "Reward accuracy", ""),
    ("rewards/margins", "Reward margin", ""),
    ("kl", "Distance from the reference (KL)", "nats an answer"),
    ("val/loss", "Held-out loss", ""),
    ("val/rewards/accuracies", "Held-out accuracy", ""),
)
"""Metrics of several runs in one chart: name, title and unit."""


@dataclass(frozen=True)
class Panel:
    """A figure on the page.

    Args:
        key: names it on the page.
        title: what is shown.
        figure: as plotly draws it.
        note: a sentence below the title.
    """

    key: str
    title: str
    figure: go.Figure
    note: str = ""

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.figure.layout.height)


@dataclass(frozen=True)
class RunView:
    """All that the template shows of a run."""

    run: RunRecord
    headline: Headline
    stage: Panel | None
    win_rates: Panel | None
    training: list[Panel]
    others: list[Panel]
    sides: list[Panel]
    votes: Panel | None
    change: Panel | None
    sampled: samples.Shown
    answers: samples.Shown
    costs: list[tables.Cost]
    kinds: list[tables.Cost]
    decisions: list[dict[str, Any]]
    data: list[tables.DataRow]
    unused: list[str]
    environment: list[tuple[str, str]]

    @property
    def panels(self) -> list[Panel]:
        """All figures."""
        single = [panel for panel in (self.stage, self.win_rates, self.votes, self.change) if panel is not None]
        return [*single, *self.training, *self.others, *self.sides]

    @property
    def is_thinned(self) -> bool:
        """Whether a line has fewer points than the run has steps."""
        return any(len(series.steps) > POINTS for series in self.run.metrics.values())


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Writes the report of run folders as one HTML file that needs nothing else.

    Args:
        folders: of one run, or of several to compare.
        output: the file; it is written whole or not at all.

    Raises:
        FileNotFoundError: a folder holds no run.
    """
    page = render([read_run(folder) for folder in folders])
    with written_whole(output) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")


def render(runs: Sequence[RunRecord], now: datetime | None = None) -> str:
    """The page of one run, or of several to compare.

    Args:
        runs: at least one.
        now: the time to name on the page.
    """
    named = _with_own_names(runs)
    budget = samples.BUDGET // 2 // len(named)
    views = [_view(run, budget) for run in named]
    compared = _compared(named) if len(named) > 1 else []
    return _template().render(
        title=_title(named),
        views=views,
        compared=compared,
        differences=tables.differences(named) if len(named) > 1 else [],
        running=any(run.state == "running" for run in named),
        written=(now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        points=POINTS,
        figures=_figures(_keyed(views, compared)),
        rows=_as_script([{"sampled": view.sampled.rows, "answers": view.answers.rows} for view in views]),
        dark=_as_script(DARK),
        plotly=Markup(get_plotlyjs()),
        **{name: Markup(_text_of(file)) for name, file in (("style", "report.css"), ("script", "report.js"))},
    )


def _view(run: RunRecord, budget: int) -> RunView:
    return RunView(
        run=run,
        headline=headline(run),
        stage=_panel("stage", "The stage over time", figures.stage_figure(run) or figures.share_figure(run)),
        win_rates=_panel("win-rates", "Win rate against the start", figures.win_rates_figure(run)),
        training=_charts(run, lines.CHARTS),
        others=_charts(run, lines.other_charts(run)),
        sides=_sides(run),
        votes=_panel("votes", "How the judge's votes fell", figures.votes_figure(run)),
        change=_panel("change", "Scores before and after", figures.change_figure(run)),
        sampled=samples.sampled(run, budget),
        answers=samples.before_and_after(run, budget),
        costs=tables.costs(run),
        kinds=tables.by_kind(run),
        decisions=tables.decision_rows(run),
        data=tables.data_rows(run),
        unused=tables.unused_columns(run),
        environment=tables.environment_rows(run),
    )


def _panel(key: str, title: str, figure: go.Figure | None, note: str = "") -> Panel | None:
    return None if figure is None else Panel(key, title, figure, note)


def _charts(run: RunRecord, charts: Sequence[lines.Chart]) -> list[Panel]:
    panels = [_panel(chart.key, chart.title, lines.training_figure(run, chart), chart.note) for chart in charts]
    return [panel for panel in panels if panel is not None]


def _sides(run: RunRecord) -> list[Panel]:
    panels = [
        _panel(f"sides-{name}", title, figures.sides_figure(run, name), note)
        for name, (title, note) in figures.FIGURES.items()
    ]
    panels += [
        _panel(f"rounds-{name}", title, figures.round_figure(run, name), note)
        for name, (title, note) in figures.ROUNDS.items()
    ]
    return [panel for panel in panels if panel is not None]


def _compared(runs: Sequence[RunRecord]) -> list[Panel]:
    panels = [_panel("compare-score", "Boundary score", figures.scores_figure(runs))]
    panels += [
        _panel(f"compare-{n}", title, lines.comparison_figure(runs, metric, unit))
        for n, (metric, title, unit) in enumerate(COMPARED)
    ]
    return [panel for panel in panels if panel is not None]


def _keyed(views: Sequence[RunView], compared: Sequence[Panel]) -> dict[str, Panel]:
    keyed = {f"all/{panel.key}": panel for panel in compared}
    for number, view in enumerate(views):
        keyed |= {f"{number}/{panel.key}": panel for panel in view.panels}
    return keyed


def _with_own_names(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs with names that tell them apart."""
    seen: dict[str, int] = {}
    named: list[RunRecord] = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        named.append(run if seen[run.name] == 1 else replace(run, name=f"{run.name} ({seen[run.name]})"))
    return named


def _title(runs: Sequence[RunRecord]) -> str:
    return ", ".join(run.name for run in runs)


def _figures(panels: Mapping[str, Panel]) -> Markup:
    entries = [f"{json.dumps(key)}:{panel.figure.to_json()}" for key, panel in panels.items()]
    return _for_script("{" + ",".join(entries) + "}")


def _as_script(value: Any) -> Markup:
    return _for_script(json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")))


def _for_script(text: str) -> Markup:
    """JSON for a script element: nothing in it can end the element."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("lit_align.html_report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_text"] = lambda value: escape(str(value))
    environment.filters["unbroken"] = lambda value: value.replace("-", "\u2011")
    return environment.get_template("report.html.j2")


def _text_of(name: str) -> str:
    return (Path(__file__).parent / "template" / name).read_text(encoding="utf-8")
