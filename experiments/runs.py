"""Reads the whole runs of Table 3 from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from experiments.arm import INJECTION, SCHEDULES, Arm
from experiments.forks import Gauge, Record, gains, scout_of


def label(arm: Arm) -> str:
    """The name of a whole run in tables and plots: its schedule, and its loss if that is not the usual one."""
    return arm.schedule if arm.loss == INJECTION else f"{arm.schedule}, {arm.loss}"


def runs_of(records: Mapping[Arm, Record], length: str = "") -> list[Arm]:
    """Lists the whole runs of a length with an evaluated start, in the order of the schedules."""
    order = list(SCHEDULES)
    runs = [
        arm
        for arm, record in records.items()
        if arm.evaluate_every and arm.variant == length and scout_of(arm, record) in records
    ]
    return sorted(runs, key=lambda arm: (arm.task, order.index(arm.schedule), arm.loss, arm.seed))


def curve(arm: Arm, records: Mapping[Arm, Record], gauge: Gauge) -> list[tuple[float, float]]:
    """Returns (seconds, gain) at each evaluation of a whole run, starting with (0, 0); processor time on a CPU."""
    record = records[arm]
    clock = "cpu_seconds" if record["device"] == "cpu" else "seconds"
    before = records[scout_of(arm, record)]["evaluations"][0]["scores"]
    points = [(0.0, 0.0)]
    for evaluation in record["evaluations"]:
        points.append((evaluation[clock], fmean(gains(evaluation["scores"], before, gauge))))
    return points


def value_at(points: Sequence[tuple[float, float]], x: float) -> float:
    """Interpolates linearly between points; after the last point its value stays."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def shortest(records: Mapping[Arm, Record], task: str, length: str = "") -> float:
    """Returns the seconds of the fastest whole run of a task."""
    return min(curve(arm, records, "score")[-1][0] for arm in runs_of(records, length) if arm.task == task)


def stages(record: Record) -> str:
    """Lists the changes of the on-policy share: `0:0 20:1` is 0 from step 0 on and 1 from step 20 on."""
    changes: list[str] = []
    share = None
    for decision in record["decisions"]:
        if decision["on_policy_share"] != share:
            share = decision["on_policy_share"]
            changes.append(f"{decision['step']}:{share:.2g}")
    return " ".join(changes)
