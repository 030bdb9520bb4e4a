"""Reads the whole runs of Tables 3 and 5 from the records, as the few figures that tables and plots need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from experiments.arm import Arm
from experiments.forks import Gauge, Record, gains, measurements, scout_of
from experiments.schedules import INJECTION, SCHEDULES

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """The figures of one whole run; one row of `docs/evidence/runs.json`.

    Args:
        task: one of `TASKS`.
        name: the schedule, and the loss if that is not the usual one.
        seed: the run's seed.
        length: one of `LENGTHS`; empty for runs of the usual length.
        steps: optimizer step of each evaluation, of which the first, before any step, is left out.
        seconds: seconds of the run until each evaluation: processor time on a CPU, else by the wall clock.
        win: gain in win rate against the start at each evaluation, less 0.5.
        score: gain in mean score at each evaluation.
        stages: the on-policy shares, as `stages` writes them.
        wall_seconds: by the wall clock at the last evaluation.
        round_seconds: of them, sampling and judging of rounds.
        measuring_seconds: of them, measurements.
        measurements: how many.
        round_answers: answers sampled for rounds.
        measured_answers: answers sampled to measure.
        tokens: tokens of all these answers, at most.
        verdicts: scores that the judge gave, of sampled and of static answers.
        code: version of the code.
        finished: when.
    """

    task: str
    name: str
    seed: int
    length: str
    steps: Sequence[int]
    seconds: Sequence[float]
    win: Sequence[float]
    score: Sequence[float]
    stages: str
    wall_seconds: float
    round_seconds: float
    measuring_seconds: float
    measurements: int
    round_answers: int
    measured_answers: int
    tokens: int
    verdicts: float
    code: str
    finished: str

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from all other runs."""
        return self.task, self.length, self.seed, self.name

    def curve(self, gauge: Gauge) -> list[tuple[float, float]]:
        """(seconds, gain) at each evaluation, beginning with (0, 0)."""
        return [(0.0, 0.0), *zip(self.seconds, self.win if gauge == "win" else self.score, strict=True)]


def read_runs(records: Mapping[Arm, Record]) -> list[Run]:
    """Reads the whole runs with an evaluated start."""
    return in_order(
        _read(arm, record, records[scout_of(arm, record)])
        for arm, record in records.items()
        if arm.evaluate_every and scout_of(arm, record) in records
    )


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Sorts runs by task, length, schedule, loss and seed."""
    order = list(SCHEDULES)
    return sorted(
        runs, key=lambda run: (run.task, run.length, order.index(run.name.split(", ")[0]), run.name, run.seed)
    )


def _read(arm: Arm, record: Record, scout: Record) -> Run:
    evaluations = record["evaluations"]
    before = scout["evaluations"][0]["scores"]
    decisions = measurements(record)
    clock = "cpu_seconds" if record["device"] == "cpu" else "seconds"
    round_answers = sum(r["candidates"] - r["reused"] for r in record["rounds"])
    measured_answers = sum(map(_sampled, decisions))
    return Run(
        task=arm.task,
        name=arm.schedule if arm.loss == INJECTION else f"{arm.schedule}, {arm.loss}",
        seed=arm.seed,
        length=arm.variant,
        steps=[row["step"] for row in evaluations],
        seconds=[round(row[clock], 1) for row in evaluations],
        win=[round(fmean(gains(row["scores"], before, "win")), 5) for row in evaluations],
        score=[round(fmean(gains(row["scores"], before, "score")), 5) for row in evaluations],
        stages=stages(record),
        wall_seconds=round(evaluations[-1]["seconds"], 1),
        round_seconds=round(sum(r["sample_seconds"] + r["judge_seconds"] for r in record["rounds"]), 1),
        measuring_seconds=round(sum(decision["seconds"] for decision in decisions), 1),
        measurements=len(decisions),
        round_answers=round_answers,
        measured_answers=measured_answers,
        tokens=(round_answers + measured_answers) * record["setup"]["max_new_tokens"],
        verdicts=round_answers + sum(map(_verdicts, decisions)),
        code=record["code"],
        finished=record["finished"],
    )


def _sampled(decision: Mapping[str, Any]) -> int:
    return int(decision["prompts"] * decision["characteristics"]["on_policy"]["candidates"])


def _verdicts(decision: Mapping[str, Any]) -> float:
    """The number of answers that a measurement let the judge score, of both sides."""
    return float(decision["prompts"] * sum(side["candidates"] for side in decision["characteristics"].values()))


def value_at(points: Points, x: float) -> float:
    """Interpolates linearly between points; after the last point its value stays."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def shortest(runs: Iterable[Run]) -> float:
    """Returns the seconds of the fastest run."""
    return min(run.seconds[-1] for run in runs)


def stages(record: Record) -> str:
    """Lists the changes of the on-policy share: `0:0 20:1` is 0 from step 0 on and 1 from step 20 on."""
    changes: list[str] = []
    share = None
    for decision in record["decisions"]:
        if decision["on_policy_share"] != share:
            share = decision["on_policy_share"]
            changes.append(f"{decision['step']}:{share:.2g}")
    return " ".join(changes)


def mean_curve(runs: Sequence[Run], gauge: Gauge) -> list[tuple[float, float]]:
    """Averages curves point by point; those of one schedule are evaluated at the same steps."""
    means = []
    for points in zip(*(run.curve(gauge) for run in runs), strict=True):
        seconds, values = zip(*points, strict=True)
        means.append((fmean(seconds), fmean(values)))
    return means
