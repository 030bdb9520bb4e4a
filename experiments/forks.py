"""Reads the forks of Table 1 from the records: one starting point, trained on either source."""

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
from lit_align.judges.vote_arrays import votes_from_scores

Record = Mapping[str, Any]
Gauge = Literal["win", "score"]
"""How to measure a gain: as the win rate against the start's answers minus 0.5, or as the change of the mean score."""


@dataclass(frozen=True)
class Start:
    """A starting point with its measurement and evaluation.

    Args:
        arm: the scout, the arm that measured and evaluated it.
        decision: the measurement before the first step.
        on: scores of the policy's candidates, one list per measured prompt.
        off: scores of the static candidates of the same prompts.
        scores: scores of the answers to the evaluation prompts.
    """

    arm: Arm
    decision: Decision
    on: Sequence[Sequence[float]]
    off: Sequence[Sequence[float]]
    scores: Sequence[float]

    @property
    def boundary(self) -> Estimate:
        """The boundary score with its interval."""
        decision = self.decision
        assert decision.score is not None and decision.low is not None and decision.high is not None  # a scout measures
        return Estimate(decision.score, decision.low, decision.high)

    @property
    def votes(self) -> list[PromptVotes]:
        """The cross votes of each prompt, in the order of the measurement."""
        return [count_votes(votes_from_scores(a, b)) for a, b in zip(self.on, self.off, strict=True)]


@dataclass(frozen=True)
class Gain:
    """The gain of one arm of a fork, and its cost.

    Args:
        each: gain on each evaluation prompt.
        seconds: time of training and of making pairs, without measurements and evaluations.
        judged: answers sampled and judged for training.
        pairs: training pairs.
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
    """A starting point with the gains from both sources.

    Args:
        start: the starting point.
        loss: the loss of both arms.
        off: the gain from off-policy pairs.
        on: the gain from as many on-policy pairs.
    """

    start: Start
    loss: str
    off: Gain
    on: Gain

    @property
    def trajectory(self) -> tuple[str, int]:
        """Task and seed. Forks of one trajectory are dependent: they share static data and the start's training."""
        return self.start.arm.task, self.start.arm.seed

    @property
    def difference(self) -> Estimate:
        """The gain from on-policy pairs minus the gain from off-policy pairs, paired by prompt."""
        return mean_of([a - b for a, b in zip(self.on.each, self.off.each, strict=True)])

    @property
    def on_pays(self) -> bool | None:
        """Whether the gain from on-policy pairs is larger; None if both are equal."""
        return None if self.difference.value == 0 else self.difference.value > 0

    @property
    def on_pays_by_the_second(self) -> bool | None:
        """Whether the gain per second from on-policy pairs is larger; None if both are equal."""
        on = self.on.mean / self.on.seconds
        off = self.off.mean / self.off.seconds
        return None if on == off else on > off


def scout_of(arm: Arm, record: Record) -> Arm:
    """The arm that measures and evaluates the starting point of `arm`."""
    return Arm(arm.task, arm.seed, arm.start, "off", record["setup"]["fork_steps"])


def read_start(arm: Arm, record: Record) -> Start:
    """Reads a starting point from its scout's record."""
    on = [_scores(row["on_policy"]) for row in record["measured"]]
    off = [_scores(row["off_policy"]) for row in record["measured"]]
    return Start(arm, Decision.from_record(record["decisions"][0]), on, off, record["evaluations"][0]["scores"])


def _scores(candidates: Sequence[Mapping[str, Any]]) -> list[float]:
    return [candidate["score"] for candidate in candidates]


def gains(after: Sequence[float], before: Sequence[float], gauge: Gauge) -> list[float]:
    """Computes the gain on each prompt: 0.5 for a win, 0 for a tie, -0.5 for a loss; or in the judge's units."""
    if gauge == "win":
        return (np.sign(np.subtract(after, before)) / 2).tolist()
    return np.subtract(after, before).tolist()


def measurements(record: Record) -> list[Mapping[str, Any]]:
    """Lists an arm's decisions that were measured, except after the last step, which has no effect."""
    steps = record["arm"]["steps"]
    return [d for d in record["decisions"] if d["score"] is not None and d["step"] < steps]


def read_gain(record: Record, start: Start, gauge: Gauge) -> Gain:
    """Reads an arm's gain and cost from its record."""
    end = record["evaluations"][-1]
    return Gain(
        gains(end["scores"], start.scores, gauge),
        end["seconds"] - sum(decision["seconds"] for decision in measurements(record)),
        sum(round_["candidates"] for round_ in record["rounds"]),
        record["arm"]["steps"] * record["setup"]["batch_size"],
    )


def read_forks(records: Mapping[Arm, Record], gauge: Gauge) -> list[Fork]:
    """Lists the forks with both arms and their scout finished, in the order of the records."""
    forks = []
    for arm, record in records.items():
        if arm.schedule != "on" or not arm.plain:
            continue
        off = replace(arm, schedule="off")
        scout = scout_of(arm, record)
        if off in records and scout in records:
            start = read_start(scout, records[scout])
            off_gain = read_gain(records[off], start, gauge)
            forks.append(Fork(start, arm.loss, off_gain, read_gain(record, start, gauge)))
    return forks
