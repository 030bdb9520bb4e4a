"""The whole runs of Table 3 out of their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from experiments.arm import SCHEDULES, Arm
from experiments.forks import Gauge, Record, gains, scout_of


def runs_of(records: Mapping[Arm, Record]) -> list[Arm]:
    """Whole runs whose start was evaluated, in the order of the schedules."""
    order = list(SCHEDULES)
    runs = [arm for arm in records if arm.evaluate_every and scout_of(arm, records[arm]) in records]
    return sorted(runs, key=lambda arm: (arm.task, order.index(arm.schedule)))


def curve(arm: Arm, records: Mapping[Arm, Record], gauge: Gauge) -> list[tuple[float, float]]:
    """(seconds, gain) at each evaluation of a whole run, from (0, 0) on."""
    record = records[arm]
    scout = scout_of(arm, record)
    before = records[scout]["evaluations"][0]["scores"]
    return [(0.0, 0.0), *((e["seconds"], fmean(gains(e["scores"], before, gauge))) for e in record["evaluations"])]


def value_at(points: Sequence[tuple[float, float]], x: float) -> float:
    """Between two points in proportion; the last value after the last."""
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def shortest(records: Mapping[Arm, Record], task: str) -> float:
    """Seconds of the quickest whole run of a task."""
    return min(records[arm]["evaluations"][-1]["seconds"] for arm in runs_of(records) if arm.task == task)


def stages(record: Record) -> str:
    """`0:0 20:1`: the share from step 0 on is 0, from step 20 on 1."""
    found: list[str] = []
    last = None
    for one in record["decisions"]:
        if one["on_policy_share"] != last:
            last = one["on_policy_share"]
            found.append(f"{one['step']}:{last:.2g}")
    return " ".join(found)
