"""Writes tables in Markdown and plots in SVG from the records of finished arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.arm import Arm
from experiments.crossing import points_of
from experiments.forks import Gauge, Record, read_forks
from experiments.plots import crossing_plot, forks_plot, predictors_plot, runs_plot
from experiments.runner import Records, code_version
from experiments.runs import Run, read_runs
from experiments.table import grouped
from experiments.tables import all_tables


def write_report(records: Records, planned: Sequence[Arm], command: str) -> Path:
    """Writes `report.md` and the plots of the finished arms into the folder of the records.

    Args:
        records: the records.
        planned: the arms to include.
        command: the command line, for the head of the report.

    Returns:
        The path of `report.md`.
    """
    finished = records.read(planned)
    plots = plots_of(finished)
    images = [f"![{name}]({name}.svg)" for name in plots]
    parts = [head(finished, len(planned), command), *images, *map(str, all_tables(finished))]
    records.folder.mkdir(parents=True, exist_ok=True)
    for name, svg in plots.items():
        (records.folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    path = records.folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def plots_of(records: Mapping[Arm, Record]) -> dict[str, str]:
    """Draws the plots that there are records for: SVG by name."""
    gauges: tuple[Gauge, ...] = ("win", "score")
    by_gauge = {gauge: read_forks(records, gauge) for gauge in gauges}
    plots = {f"forks-{gauge}": forks_plot(forks, gauge) for gauge, forks in by_gauge.items() if forks}
    if plots:
        plots["predictors"] = predictors_plot(by_gauge)
        plots |= {f"crossing-{gauge}": crossing_plot(points_of(forks), gauge) for gauge, forks in by_gauge.items()}
    plots |= run_plots(read_runs(records))
    return plots


def run_plots(runs: Sequence[Run]) -> dict[str, str]:
    """Draws the curves of whole runs: SVG by name, for each task, length and gauge."""
    plots = {}
    gauges: tuple[Gauge, ...] = ("win", "score")
    for (task, length), group in grouped(runs, lambda run: (run.task, run.length)).items():
        for gauge in gauges:
            name = "-".join(filter(None, ["runs", task, length, gauge]))
            plots[name] = runs_plot(group, gauge, f"Whole runs: {' '.join(filter(None, [task, length]))}")
    return plots


def head(records: Mapping[Arm, Record], planned: int, command: str) -> str:
    """Says which arms, machines and versions of the code the report is made of."""
    if not records:
        return f"`{command}`\n\nNo arm is finished."
    codes = Counter(record["code"] for record in records.values())
    hours = sum(record["wall_seconds"] for record in records.values()) / 3600
    ends = sorted(record["finished"] for record in records.values())
    devices = sorted({f"{record['device']} with {record['threads']} threads" for record in records.values()})
    versions = ", ".join(f"{code} ({count} arms)" for code, count in codes.items())
    return (
        f"`{command}`\n\n{len(records)} of {planned} arms, {hours:.1f} hours if run one after the other, on "
        f"{' and '.join(devices)}; finished {ends[0]} to {ends[-1]}. Code {versions}; now {code_version()}."
    )
