"""Tables in Markdown and plots in SVG from the records of finished arms, and from nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.arm import Arm
from experiments.forks import Gauge, Record, read_forks
from experiments.plan import TABLES, with_parents
from experiments.plots import forks_plot, predictors_plot, runs_plot
from experiments.runner import Records, code_version
from experiments.runs import runs_of
from experiments.tables import all_tables


def write_report(records: Records, seeds: Sequence[int], command: str) -> Path:
    """Writes `report.md` and the plots into the folder of the records, from the arms that are finished.

    Args:
        records: the folder.
        seeds: whose arms to look at.
        command: what was called, for the head of the report.

    Returns:
        The file.
    """
    arms = with_parents(arm for table in TABLES.values() for arm in table(records.setup, seeds))
    found = records.read(arms)
    plots = plots_of(found)
    pictures = [f"![{name}]({name}.svg)" for name in plots]
    parts = [head(found, len(arms), command), *pictures, *map(str, all_tables(found))]
    records.folder.mkdir(parents=True, exist_ok=True)
    for name, svg in plots.items():
        (records.folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    path = records.folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def plots_of(records: Mapping[Arm, Record]) -> dict[str, str]:
    """SVG by name; only those for which there are records."""
    gauges: tuple[Gauge, ...] = ("win", "score")
    forks = {gauge: read_forks(records, gauge) for gauge in gauges}
    tasks = dict.fromkeys(arm.task for arm in runs_of(records))
    plots = {f"forks-{gauge}": forks_plot(some, gauge) for gauge, some in forks.items() if some}
    plots |= {"predictors": predictors_plot(forks)} if plots else {}
    return plots | {f"runs-{task}-{gauge}": runs_plot(records, task, gauge) for task in tasks for gauge in gauges}


def head(records: Mapping[Arm, Record], planned: int, command: str) -> str:
    """What the report is made of."""
    if not records:
        return f"`{command}`\n\nNo arm is finished."
    codes = Counter(record["code"] for record in records.values())
    hours = sum(record["wall_seconds"] for record in records.values()) / 3600
    ends = sorted(record["finished"] for record in records.values())
    devices = sorted({f"{record['device']} with {record['threads']} threads" for record in records.values()})
    made = ", ".join(f"{code} ({count} arms)" for code, count in codes.items())
    return (
        f"`{command}`\n\n{len(records)} of {planned} arms, {hours:.1f} hours if run one after the other, on "
        f"{' and '.join(devices)}; finished {ends[0]} to {ends[-1]}. Code {made}; now {code_version()}."
    )
