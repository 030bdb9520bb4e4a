"""What a measurement found, and what was decided on it."""

from __future__ import annotations

from dataclasses import dataclass

from lit_align.records import Stage

BOUNDARY = 0.5
"""The score at which the two stages meet."""


@dataclass(frozen=True)
class BoundaryResult:
    """A boundary score with its evidence.

    Args:
        score: the mean over prompts of the share of the prompt's cross votes that the on-policy side
            wins, in [0, 1]; ties are half a vote.
        low: lower end of the confidence interval, in [0, 1].
        high: upper end.
        prompts: prompts with at least one vote.
        votes_on: cross votes that the on-policy side won.
        votes_off: cross votes that the off-policy side won.
        ties: cross votes that neither side won.
        abstentions: comparisons in which the judge gave no verdict; they are in no other number.
        seconds: wall time of the measurement.
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

    @property
    def stage(self) -> Stage:
        """Injection below 0.5, fine-tuning from 0.5 on (Algorithm 1 of arXiv 2508.10530)."""
        return Stage.FINE_TUNING if self.score >= BOUNDARY else Stage.INJECTION

    @property
    def decided(self) -> bool:
        """Whether 0.5 lies outside the interval."""
        return not self.low <= BOUNDARY <= self.high


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
    """

    step: int
    stage: str
    on_policy_share: float
    score: float | None
    low: float | None
    high: float | None
    prompts: int | None
    votes_on: int | None
    votes_off: int | None
    ties: int | None
    abstentions: int | None
    seconds: float | None
    reason: str

    @property
    def measured(self) -> bool:
        """Whether a score stands behind it."""
        return self.score is not None
