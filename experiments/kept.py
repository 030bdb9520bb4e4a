"""Keeps the final figures of finished arms in docs/evidence, so that later rounds add seeds to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.arm import Arm
from experiments.crossing import Point, crossing_table, decided_table
from experiments.forks import Fork, Record, read_forks
from experiments.plots import crossing_plot
from experiments.predictors import relative_margin
from experiments.report import run_plots
from experiments.run_tables import run_tables
from experiments.runner import ROOT
from experiments.runs import Run, in_order, read_runs

FOLDER = ROOT / "docs" / "evidence"
GAUGES = {"win": "win", "mean score": "mean_score"}
"""The gauges as tables and as the rows of `forks.json` name them."""
Row = dict[str, Any]


def keep(records: Mapping[Arm, Record], folder: Path = FOLDER) -> None:
    """Merges the figures of finished arms into `runs.json` and `forks.json`; newer ones of an arm replace older ones.

    Args:
        records: of the usual setup, since figures of different models are not comparable.
        folder: of the two files.
    """
    runs = {run.key: run for run in [*kept_runs(folder), *read_runs(records)]}
    _write(folder / "runs.json", [asdict(run) for run in in_order(runs.values())])
    forks = {_fork_key(row): row for row in [*_rows(folder / "forks.json"), *fork_rows(records)]}
    _write(folder / "forks.json", forks.values())


def fork_rows(records: Mapping[Arm, Record]) -> list[Row]:
    """The figures of each fork: its score by votes and by graded margins, and on less off by both gauges."""
    return [_fork_row(*both) for both in zip(read_forks(records, "win"), read_forks(records, "score"), strict=True)]


def _fork_row(win: Fork, score: Fork) -> Row:
    start = win.start
    return {
        "task": start.arm.task,
        "seed": start.arm.seed,
        "start": "after " + " + ".join(start.arm.start) if start.arm.start else "base",
        "loss": win.loss,
        "score": round(start.boundary.value, 4),
        "low": round(start.boundary.low, 4),
        "high": round(start.boundary.high, 4),
        "graded": round(relative_margin(start) + 0.5, 4),
        "win": round(win.difference.value, 4),
        "mean_score": round(score.difference.value, 4),
    }


def _fork_key(row: Row) -> tuple[Any, ...]:
    return row["task"], row["seed"], row["start"], row["loss"]


def kept_runs(folder: Path = FOLDER) -> list[Run]:
    """Reads the whole runs that were kept."""
    return [Run(**row) for row in _rows(folder / "runs.json")]


def kept_points(folder: Path = FOLDER) -> dict[str, list[Point]]:
    """Reads the forks that were kept as points; by graded margins only those that have them."""
    rows = _rows(folder / "forks.json")
    points = {}
    for gauge, difference in GAUGES.items():
        for name, score in (("votes", "score"), ("graded margins", "graded")):
            of_score = [_point(row, score, difference) for row in rows if score in row]
            if of_score:
                points[f"{name}, {gauge}"] = of_score
    return points


def _point(row: Row, score: str, difference: str) -> Point:
    return Point((row["task"], row["seed"]), row[score], row[difference], not row["low"] <= 0.5 <= row["high"])


def write_kept(target: Path, folder: Path = FOLDER) -> None:
    """Writes the tables of all that is kept to a Markdown file, and the plots beside the figures.

    Args:
        target: the Markdown file.
        folder: of the figures.
    """
    runs = kept_runs(folder)
    points = kept_points(folder)
    by_votes = {name: group for name, group in points.items() if name.startswith("votes")}
    tables = [crossing_table(points), decided_table(by_votes), *run_tables(runs)]
    target.write_text("\n\n".join(map(str, tables)) + "\n", encoding="utf-8")
    plots = {f"kept-{name}": svg for name, svg in run_plots(runs).items()}
    for gauge, name in GAUGES.items():
        plots[f"crossing-{name.replace('mean_', '')}"] = crossing_plot(points[f"votes, {gauge}"], gauge)
    for name, svg in plots.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def _rows(path: Path) -> list[Row]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one row a line, so that a change shows as what it is."""
    lines: Sequence[str] = [json.dumps(row) for row in rows]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
