"""Reads the whole runs of Table 3 from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from experiments.arm import SCHEDULES, Arm
from experiments.forks import Gauge, Record, gains, scout_of


def runs_of(records: Mapping[Arm, Record]) -> list[Arm]:
    """Lists the whole runs with an evaluated start, in the order of the schedules."""
    order = list(SCHEDULES)
    runs = [arm for arm in records if arm.evaluate_every and scout_of(arm, records[arm]) in records]
    return sorted(runs, key=lambda arm: (arm.task, order.index(arm.schedule)))


def curve(arm: Arm, records: Mapping[Arm, Record], gauge: Gauge) -> list[tuple[float, float]]:
    """Returns (seconds, gain) at each evaluation of a whole run, starting with (0, 0)."""
    record = records[arm]
    before = records[scout_of(arm, record)]["evaluations"][0]["scores"]
    points = [(0.0, 0.0)]
    for evaluation in record["evaluations"]:
        points.append((evaluation["seconds"], fmean(gains(evaluation["scores"], before, gauge))))
    return points


def value_at(points: Sequence[tuple[float, float]], x: float) -> float:
    """Interpolates linearly between points; after the last point its value stays."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def shortest(records: Mapping[Arm, Record], task: str) -> float:
    """Returns the seconds of the fastest whole run of a task."""
    return min(records[arm]["evaluations"][-1]["seconds"] for arm in runs_of(records) if arm.task == task)


def stages(record: Record) -> str:
    """Lists the changes of the on-policy share: `0:0 20:1` is 0 from step 0 on and 1 from step 20 on."""
    changes: list[str] = []
    share = None
    for decision in record["decisions"]:
        if decision["on_policy_share"] != share:
            share = decision["on_policy_share"]
            changes.append(f"{decision['step']}:{share:.2g}")
    return " ".join(changes)
