"""What a measurement found, and what was decided on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from lit_align.records import Stage

BOUNDARY = 0.5
"""The score at which the two stages meet."""

FEW_PROMPTS = 32
"""With fewer prompts an undecided score is no guess to follow: its standard error is above 0.06 with two
independent votes a prompt."""

Characteristics = Mapping[str, Mapping[str, float]]
"""`on_policy` and `off_policy`: figures of diversity and quality of a side's candidates, by name, both sides at
the same number of candidates a prompt (docs/characteristics.md)."""

Method = Literal["betting", "student_t"]
"""How an interval was made: valid however often one looks, or for a number of prompts that was fixed before."""

Stopped = Literal["decided", "budget", "pool"]
"""What ended a measurement: 0.5 was outside the interval, all `max_prompts` were used, or all that there are."""


@dataclass(frozen=True)
class BoundaryResult:
    """A boundary score with its evidence.

    Args:
        score: the mean over prompts of the share of the prompt's cross votes that the on-policy side
            wins, in [0, 1]; ties are half a vote. Where it is `graded`, the mean margin instead.
        low: lower end of the interval around the score, in [0, 1].
        high: upper end.
        prompts: prompts with at least one vote.
        votes_on: cross votes that the on-policy side won.
        votes_off: cross votes that the off-policy side won.
        ties: cross votes that neither side won.
        abstentions: comparisons in which the judge gave no verdict; they are in no other number.
        seconds: wall time of the measurement.
        method: how the interval was made, "betting" (anytime-valid) or "student_t" (fixed sample).
        alpha: the chance that the interval misses the true score.
        stopped: what ended the measurement, "decided", "budget" or "pool".
        judge_warning: where the votes give the judge away, such as one that prefers by length alone: in words.
        characteristics: diversity and quality of the candidates of both sides.
        graded: whether the score goes by how much better an answer is, 0.5 being as good, and not by votes.
    """

    score: float
    low: float
    high: float
    prompts: int
    votes_on: int
    votes_off: int
    ties: int
    abstentions: int = 0
    seconds: float = 0.0
    method: Method = "student_t"
    alpha: float = 0.05
    stopped: Stopped = "budget"
    judge_warning: str | None = None
    characteristics: Characteristics = field(default_factory=dict)
    graded: bool = False

    @property
    def stage(self) -> Stage:
        """Injection below 0.5, fine-tuning from 0.5 on (Algorithm 1 of arXiv 2508.10530).

        Undecided, it is the better guess. On fewer than 32 prompts, or where the judge told no answers apart, there is
        none to start from: then it is injection, which comes first.
        """
        return Stage.FINE_TUNING if self.score >= BOUNDARY and self.tells else Stage.INJECTION

    @property
    def decided(self) -> bool:
        """Whether 0.5 lies outside the interval."""
        return not self.low <= BOUNDARY <= self.high

    @property
    def informative(self) -> bool:
        """Whether any vote was won: a judge that only ties says nothing."""
        return self.votes_on + self.votes_off > 0

    @property
    def tells(self) -> bool:
        """Whether a run may follow the score: it is decided, or at least a guess on 32 prompts."""
        return self.informative and (self.decided or self.prompts >= FEW_PROMPTS)


@dataclass(frozen=True)
class Decision:
    """What was decided at an optimizer step; one line of `boundary.jsonl`, and the state in a checkpoint.

    Args:
        step: optimizer step (`global_step`) after which it holds; 0 is before the first batch.
        stage: the stage that training is in from here on, "injection" or "fine_tuning".
        on_policy_share: share of on-policy pairs from here on, in [0, 1].
        reason: what decided, in words.
        score: None, as all below, where nothing was measured.
        low: lower end of the interval.
        high: upper end.
        prompts: prompts with at least one vote.
        votes_on: cross votes that the on-policy side won.
        votes_off: cross votes that the off-policy side won.
        ties: cross votes that neither side won.
        abstentions: comparisons without a verdict.
        seconds: wall time of the measurement.
        method: how the interval was made, "betting" or "student_t".
        alpha: the chance that the interval misses the true score.
        stopped: what ended the measurement: "decided" (0.5 outside the interval), or with 0.5 inside all the
            same "budget" (`max_prompts` used) or "pool" (all held-out prompts used). A measurement of all
            prompts (`sequential: false`) ends with the budget or the pool in any case.
        share_of_training: wall time of all measurements so far over that of the training so far; None at the
            start, too.
        judge_warning: where the votes give the judge away, such as one that prefers by length alone: in words.
        characteristics: diversity and quality of the candidates of both sides, by `on_policy` and
            `off_policy`.
        graded: whether the score goes by how much better an answer is, and not by votes.
    """

    step: int
    stage: str
    on_policy_share: float
    reason: str
    score: float | None = None
    low: float | None = None
    high: float | None = None
    prompts: int | None = None
    votes_on: int | None = None
    votes_off: int | None = None
    ties: int | None = None
    abstentions: int | None = None
    seconds: float | None = None
    method: Method | None = None
    alpha: float | None = None
    stopped: Stopped | None = None
    share_of_training: float | None = None
    judge_warning: str | None = None
    characteristics: Characteristics | None = None
    graded: bool | None = None

    @property
    def measured(self) -> bool:
        """Whether a score stands behind it."""
        return self.score is not None

    @property
    def decided(self) -> bool:
        """Whether it was measured and 0.5 lay outside the interval."""
        return self.result is not None and self.result.decided

    @property
    def result(self) -> BoundaryResult | None:
        """The measurement behind it; None where there was none."""
        if not self.measured:
            return None
        values = {entry.name: getattr(self, entry.name) for entry in fields(BoundaryResult)}
        return BoundaryResult(**{name: value for name, value in values.items() if value is not None})
