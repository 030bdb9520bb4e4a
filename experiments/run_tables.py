"""The tables of whole runs: what they bring, how they differ seed by seed, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.arm import Arm
from experiments.forks import Gauge, Record, measurements
from experiments.runs import curve, label, runs_of, shortest, stages, value_at
from experiments.stats import mean_of
from experiments.table import Table, grouped, signed

COMPARED_WITH = "follow"
"""The schedule that every other one is compared with: the boundary score, followed also while undecided."""
Points = Sequence[tuple[float, float]]


def runs_table(records: Mapping[Arm, Record], gauge: Gauge, length: str = "") -> Table:
    """What each schedule brings.

    Args:
        records: the records.
        gauge: how to measure a gain.
        length: one of `LENGTHS`; empty for runs of the usual length.
    """
    rows = []
    for (task, name), arms in _by_schedule(records, length).items():
        curves = [curve(arm, records, gauge) for arm in arms]
        equal_seconds = shortest(records, task, length)
        rows.append(
            [
                task, name, str(len(arms)), signed(mean_of([points[-1][1] for points in curves])),
                signed(mean_of([value_at(points, equal_seconds) for points in curves])),
                "; ".join(stages(records[arm]) for arm in arms),
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
    return Table(f"{_title(length)} ({gauge})", note, header, rows)


def paired_table(records: Mapping[Arm, Record], gauge: Gauge, length: str = "") -> Table:
    """By how much each schedule is ahead of `COMPARED_WITH`, seed by seed; arguments as of `runs_table`."""
    by_schedule = _by_schedule(records, length)
    rows = []
    for (task, name), arms in by_schedule.items():
        others = {arm.seed: arm for arm in by_schedule.get((task, COMPARED_WITH), [])}
        pairs = [(arm, others[arm.seed]) for arm in arms if arm.seed in others]
        if name == COMPARED_WITH or not pairs:
            continue
        curves = [(curve(arm, records, gauge), curve(other, records, gauge)) for arm, other in pairs]
        at_the_end = [mine[-1][1] - theirs[-1][1] for mine, theirs in curves]
        at_equal_seconds = [_ahead_at_equal_seconds(*both) for both in curves]
        rows.append(
            [
                task, name, str(len(pairs)), signed(mean_of(at_the_end)), signed(mean_of(at_equal_seconds)),
                " ".join(f"{difference:+.3f}" for difference in at_the_end),
            ]
        )  # fmt: skip
    header = ("task", "schedule", "seeds", "ahead, equal pairs", "ahead, equal seconds", "equal pairs, each seed")
    note = (
        f"Gain less that of `{COMPARED_WITH}` with the same seed: at the end, and when the faster one of both had "
        "ended. Intervals of 95 % over seeds."
    )
    return Table(f"{_title(length)}, against {COMPARED_WITH} ({gauge})", note, header, rows)


def effort_table(records: Mapping[Arm, Record], length: str = "") -> Table:
    """What each schedule costs."""
    rows = []
    for (task, name), arms in _by_schedule(records, length).items():
        runs = [records[arm] for arm in arms]
        rounds = [record["rounds"] for record in runs]
        decisions = [measurements(record) for record in runs]
        for_rounds = _mean_sum(rounds, lambda r: r["candidates"] - r["reused"])
        to_measure = _mean_sum(decisions, lambda d: 2 * d["prompts"])  # two answers per prompt
        wall = [record["evaluations"][-1]["seconds"] for record in runs]
        measuring = [sum(d["seconds"] for d in row) for row in decisions]
        rows.append(
            [
                task, name, str(len(runs)), f"{for_rounds:.0f}", f"{to_measure:.0f}",
                f"{(for_rounds + to_measure) * runs[0]['setup']['max_new_tokens']:,.0f}",
                f"{for_rounds + _mean_sum(decisions, _verdicts):.0f}",
                f"{fmean(curve(arm, records, 'score')[-1][0] for arm in arms):.0f}", f"{fmean(wall):.0f}",
                f"{_mean_sum(rounds, lambda r: r['sample_seconds'] + r['judge_seconds']):.0f}",
                f"{fmean(map(len, decisions)):.1f}", f"{fmean(measuring):.0f}",
                f"{fmean(m / (w - m) for m, w in zip(measuring, wall, strict=True)):.3f}",
            ]
        )  # fmt: skip
    header = (
        "task", "schedule", "seeds", "answers sampled for rounds", "to measure", "tokens, at most",
        "verdicts of the judge", "seconds, processor", "seconds, wall", "of them rounds", "measurements",
        "seconds of them", "measuring over training",
    )  # fmt: skip
    note = (
        "Means over seeds, without evaluations; all seconds but the processor's are by the wall clock. A verdict is "
        "the score of one answer, sampled or static; the answers of the rounds that look-ahead undoes, about 128 per "
        "measurement, are only counted in its seconds."
    )
    return Table(f"{_title(length)}, cost", note, header, rows)


def _by_schedule(records: Mapping[Arm, Record], length: str) -> dict[tuple[str, str], list[Arm]]:
    return grouped(runs_of(records, length), lambda arm: (arm.task, label(arm)))


def _ahead_at_equal_seconds(mine: Points, theirs: Points) -> float:
    seconds = min(mine[-1][0], theirs[-1][0])
    return value_at(mine, seconds) - value_at(theirs, seconds)


def _title(length: str) -> str:
    return f"Table 5. Runs of {length} steps" if length else "Table 3. Whole runs"


def _mean_sum(runs: Sequence[Sequence[Mapping[str, Any]]], value: Callable[[Mapping[str, Any]], float]) -> float:
    """Sums a value over the rounds or decisions of each run, and averages over the runs."""
    return fmean(sum(map(value, rows)) for rows in runs)


def _verdicts(decision: Mapping[str, Any]) -> float:
    """The number of answers that a measurement let the judge score, of both sides."""
    sides = decision["characteristics"]
    return float(decision["prompts"] * (sides["on_policy"]["candidates"] + sides["off_policy"]["candidates"]))
