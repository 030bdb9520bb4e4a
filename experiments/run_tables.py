"""The tables of whole runs: what they bring, how they differ seed by seed, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from experiments.forks import Gauge
from experiments.runs import Points, Run, shortest, value_at
from experiments.stats import mean_of
from experiments.table import Table, grouped, signed

COMPARED_WITH = "follow"
"""The schedule that every other one is compared with: the boundary score, followed also while undecided."""


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """Table 3, and Table 5 if there are longer runs; all tables of runs of one length stand together."""
    tables = []
    for length, group in grouped(runs, lambda run: run.length).items():
        title = f"Table 5. Runs of {length} steps" if length else "Table 3. Whole runs"
        gauges: tuple[Gauge, ...] = ("win", "score")
        tables += [runs_table(group, gauge, title) for gauge in gauges]
        tables += [paired_table(group, gauge, title) for gauge in gauges]
        tables.append(effort_table(group, title))
    return tables


def runs_table(runs: Sequence[Run], gauge: Gauge, title: str) -> Table:
    """What each schedule brings."""
    rows = []
    for task, of_task in grouped(runs, lambda run: run.task).items():
        equal_seconds = shortest(of_task)
        for name, group in grouped(of_task, lambda run: run.name).items():
            curves = [run.curve(gauge) for run in group]
            rows.append(
                [
                    task, name, str(len(group)), signed(mean_of([points[-1][1] for points in curves])),
                    signed(mean_of([value_at(points, equal_seconds) for points in curves])),
                    "; ".join(run.stages for run in group),
                ]
            )  # fmt: skip
    header = (
        "task", "schedule", "seeds", "gain, equal pairs", "gain, equal seconds", "on-policy share from step, each seed",
    )  # fmt: skip
    note = (
        "Gains as in Table 1 at the end of the run, and after as many seconds as the fastest run of the task took "
        "(interpolated between evaluations). Seconds are processor time on a CPU, without evaluations. Intervals of "
        "95 % over seeds."
    )
    return Table(f"{title} ({gauge})", note, header, rows)


def paired_table(runs: Sequence[Run], gauge: Gauge, title: str) -> Table:
    """By how much each schedule is ahead of `COMPARED_WITH`, seed by seed."""
    partners = {(run.task, run.seed): run.curve(gauge) for run in runs if run.name == COMPARED_WITH}
    rows = []
    for (task, name), group in grouped(runs, lambda run: (run.task, run.name)).items():
        curves = [(run.curve(gauge), partners[task, run.seed]) for run in group if (task, run.seed) in partners]
        if name == COMPARED_WITH or not curves:
            continue
        at_the_end = [mine[-1][1] - theirs[-1][1] for mine, theirs in curves]
        at_equal_seconds = [_ahead_at_equal_seconds(*both) for both in curves]
        rows.append(
            [
                task, name, str(len(curves)), signed(mean_of(at_the_end)), signed(mean_of(at_equal_seconds)),
                " ".join(f"{difference:+.3f}" for difference in at_the_end),
            ]
        )  # fmt: skip
    header = ("task", "schedule", "seeds", "ahead, equal pairs", "ahead, equal seconds", "equal pairs, each seed")
    note = (
        f"Gain less that of `{COMPARED_WITH}` with the same seed: at the end, and when the faster one of both had "
        "ended. Intervals of 95 % over seeds."
    )
    return Table(f"{title}, against {COMPARED_WITH} ({gauge})", note, header, rows)


def effort_table(runs: Sequence[Run], title: str) -> Table:
    """What each schedule costs."""
    rows = []
    for (task, name), group in grouped(runs, lambda run: (run.task, run.name)).items():
        whole = [
            [run.round_answers, run.measured_answers, run.tokens, run.verdicts, run.seconds[-1], run.wall_seconds,
             run.round_seconds, run.measuring_seconds]
            for run in group
        ]  # fmt: skip
        means = [f"{fmean(column):,.0f}" for column in zip(*whole, strict=True)]
        share = fmean(run.measuring_seconds / (run.wall_seconds - run.measuring_seconds) for run in group)
        rows.append(
            [task, name, str(len(group)), *means, f"{fmean(run.measurements for run in group):.1f}", f"{share:.3f}"]
        )
    header = (
        "task", "schedule", "seeds", "answers sampled for rounds", "to measure", "tokens, at most",
        "verdicts of the judge", "seconds", "wall seconds", "of them rounds", "measuring", "measurements",
        "measuring over the rest",
    )  # fmt: skip
    note = (
        "Means over seeds, without evaluations. Seconds are processor time on a CPU. A verdict is the score of one "
        "answer, sampled or static; the answers of the rounds that look-ahead undoes, about 128 per measurement, are "
        "only counted in its seconds."
    )
    return Table(f"{title}, cost", note, header, rows)


def _ahead_at_equal_seconds(mine: Points, theirs: Points) -> float:
    seconds = min(mine[-1][0], theirs[-1][0])
    return value_at(mine, seconds) - value_at(theirs, seconds)
