"""The forks of Table 1 out of their records: the same starting point trained on one source and on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np

from experiments.arm import Arm
from experiments.stats import Estimate, mean_of
from lit_align.boundary.result import Decision
from lit_align.boundary.votes import PromptVotes, count_votes
from lit_align.judges.base import votes_from_scores

Record = Mapping[str, Any]
Gauge = Literal["win", "score"]
"""How a gain is gauged: the win rate against the start's answers less 0.5, or the mean score less the start's."""


@dataclass(frozen=True)
class Start:
    """A starting point as its scout saw it.

    Args:
        arm: the scout.
        decision: the measurement before the first step.
        on: scores of the policy's candidates, one list a prompt measured on.
        off: scores of the static candidates of the same prompts.
        scores: of the answers to the evaluation prompts.
    """

    arm: Arm
    decision: Decision
    on: Sequence[Sequence[float]]
    off: Sequence[Sequence[float]]
    scores: Sequence[float]

    @property
    def boundary(self) -> Estimate:
        """The boundary score with its interval."""
        one = self.decision
        assert one.score is not None and one.low is not None and one.high is not None  # a scout measures
        return Estimate(one.score, one.low, one.high)

    @property
    def votes(self) -> list[PromptVotes]:
        """The cross votes of each prompt, in the order measured."""
        return [count_votes(votes_from_scores(a, b)) for a, b in zip(self.on, self.off, strict=True)]


@dataclass(frozen=True)
class Gain:
    """What one arm of a fork brought.

    Args:
        each: gain on each evaluation prompt.
        seconds: of training and of making pairs, without measuring and evaluating.
        judged: answers that were sampled and judged for training.
        pairs: pairs that were trained on.
    """

    each: Sequence[float]
    seconds: float
    judged: int
    pairs: int

    @property
    def mean(self) -> float:
        return fmean(self.each)


@dataclass(frozen=True)
class Fork:
    """A starting point with both gains.

    Args:
        start: from where.
        loss: of both arms.
        off: the gain from off-policy pairs.
        on: the gain from as many on-policy pairs.
    """

    start: Start
    loss: str
    off: Gain
    on: Gain

    @property
    def trajectory(self) -> tuple[str, int]:
        """Forks of one trajectory share their static data and their start's training: they are not independent."""
        return self.start.arm.task, self.start.arm.seed

    @property
    def difference(self) -> Estimate:
        """The gain from on-policy pairs less that from off-policy pairs, paired by prompt."""
        return mean_of([a - b for a, b in zip(self.on.each, self.off.each, strict=True)])

    @property
    def on_pays(self) -> bool | None:
        """Whether on-policy pairs brought more; None where both brought the same."""
        return None if self.difference.value == 0 else self.difference.value > 0

    @property
    def on_pays_by_the_second(self) -> bool | None:
        """The same for the gain a second."""
        on, off = self.on.mean / self.on.seconds, self.off.mean / self.off.seconds
        return None if on == off else on > off


def scout_of(arm: Arm, record: Record) -> Arm:
    """The arm that measured and evaluated the starting point of another."""
    return Arm(arm.task, arm.seed, arm.start, "off", record["setup"]["fork_steps"])


def read_start(arm: Arm, record: Record) -> Start:
    """A starting point out of its scout's record."""
    sides = {
        side: [[candidate["score"] for candidate in row[side]] for row in record["measured"]]
        for side in ("on_policy", "off_policy")
    }
    before = record["evaluations"][0]
    return Start(arm, Decision(**record["decisions"][0]), sides["on_policy"], sides["off_policy"], before["scores"])


def gains(after: Sequence[float], before: Sequence[float], gauge: Gauge) -> list[float]:
    """The gain on each prompt: as a win (0.5), a tie (0) or a loss (-0.5), or in the judge's units."""
    if gauge == "win":
        return (np.sign(np.subtract(after, before)) / 2).tolist()
    return np.subtract(after, before).tolist()


def measurements(record: Record) -> list[Mapping[str, Any]]:
    """The decisions of an arm that were measured, without one after its last step, which decides nothing."""
    return [one for one in record["decisions"] if one["score"] is not None and one["step"] < record["arm"]["steps"]]


def read_gain(record: Record, start: Start, gauge: Gauge) -> Gain:
    """What an arm brought, out of its record."""
    end = record["evaluations"][-1]
    return Gain(
        gains(end["scores"], start.scores, gauge),
        end["seconds"] - sum(one["seconds"] for one in measurements(record)),
        sum(one["candidates"] for one in record["rounds"]),
        record["arm"]["steps"] * record["setup"]["batch_size"],
    )


def read_forks(records: Mapping[Arm, Record], gauge: Gauge) -> list[Fork]:
    """All forks with both arms and their scout finished, in the order of the records."""
    found = []
    for arm, record in records.items():
        if arm.schedule != "on" or not arm.plain:
            continue
        off, scout = replace(arm, schedule="off"), scout_of(arm, record)
        if off in records and scout in records:
            start = read_start(scout, records[scout])
            found.append(Fork(start, arm.loss, read_gain(records[off], start, gauge), read_gain(record, start, gauge)))
    return found
