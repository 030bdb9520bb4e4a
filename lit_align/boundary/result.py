"""The result of a measurement, and the decision that was taken on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from lit_align.records import Stage

BOUNDARY = 0.5
"""The score at which the two stages meet, as published (Algorithm 1 of arXiv 2508.10530)."""

FEW_PROMPTS = 32
"""With fewer prompts an undecided score is no guess to follow: its standard error is above 0.06 with two
independent votes a prompt."""

Characteristics = Mapping[str, Mapping[str, float]]
"""`on_policy` and `off_policy`: figures of diversity and quality of a side's candidates, by name, both sides at
the same number of candidates a prompt (docs/characteristics.md)."""

Method = Literal["betting", "student_t"]
"""How an interval was made: valid however often one looks, or for a number of prompts that was fixed before."""

Stopped = Literal["decided", "budget", "pool"]
"""The end of a measurement: the threshold was outside the interval, or `max_prompts` or all prompts were used."""


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
        judge_warning: a doubt about the judge that the votes raise, such as that it only goes by length; None without.
        characteristics: diversity and quality of the candidates of both sides.
        graded: whether the score goes by how much better an answer is, 0.5 being as good, and not by votes.
        threshold: the score at which the two stages meet, in (0, 1).
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
    threshold: float = BOUNDARY

    @property
    def stage(self) -> Stage:
        """Injection below the threshold, fine-tuning from it on (Algorithm 1 of arXiv 2508.10530, where it is 0.5).

        Undecided, it is the better guess. On fewer than 32 prompts, or where the judge told no answers apart, there is
        none to start from: then it is injection, which comes first.
        """
        return Stage.FINE_TUNING if self.score >= self.threshold and self.tells else Stage.INJECTION

    @property
    def decided(self) -> bool:
        """Whether the threshold lies outside the interval."""
        return not self.low <= self.threshold <= self.high

    @property
    def informative(self) -> bool:
        """Whether any vote was won: a judge that only ties says nothing."""
        return self.votes_on + self.votes_off > 0

    @property
    def tells(self) -> bool:
        """Whether a run may follow the score: it is decided, or at least a guess on 32 prompts."""
        return self.informative and (self.decided or self.prompts >= FEW_PROMPTS)


_FIGURES = tuple(entry.name for entry in fields(BoundaryResult))
_AFTER_THE_COST = ("judge_warning", "characteristics", "graded", "threshold")
"""The figures that stand behind `share_of_training` in a line of `boundary.jsonl`."""


@dataclass(frozen=True)
class Decision:
    """The outcome of a decision at an optimizer step; one line of `boundary.jsonl`, and the state in a checkpoint.

    The figures of the measurement can be read here, too: `decision.score` is `decision.result.score`, and None where
    nothing was measured.

    Args:
        step: optimizer step (`global_step`) after which it holds; 0 is before the first batch.
        stage: the stage that training is in from here on, "injection" or "fine_tuning".
        on_policy_share: share of on-policy pairs from here on, in [0, 1].
        reason: what decided, in words.
        result: the measurement behind it; None where there was none.
        share_of_training: wall time of all measurements so far over that of the training so far; None at the
            start, and without a measurement.

    Example:
        >>> measured = Decision(0, "injection", 0.0, "first measurement", BoundaryResult(0.2, 0.1, 0.3, 40, 8, 32, 0))
        >>> measured.score, measured.decided, Decision(1, "injection", 0.0, "by hand").score
        (0.2, True, None)
        >>> Decision.from_record(measured.record()) == measured
        True
    """

    step: int
    stage: str
    on_policy_share: float
    reason: str
    result: BoundaryResult | None = None
    share_of_training: float | None = None

    def __getattr__(self, name: str) -> Any:
        """A figure of the measurement, None without one. Schedules read `history[-1].score`."""
        if name not in _FIGURES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.result, name, None)

    @property
    def measured(self) -> bool:
        """Whether a score stands behind it."""
        return self.result is not None

    @property
    def decided(self) -> bool:
        """Whether it was measured and the threshold lay outside the interval."""
        return self.result is not None and self.result.decided

    def record(self) -> dict[str, Any]:
        """A line of `boundary.jsonl`: plain types, the figures beside the decision, None where nothing was measured."""
        figures: dict[str, Any] = dict.fromkeys(_FIGURES) if self.result is None else asdict(self.result)
        after_the_cost = {name: figures.pop(name) for name in _AFTER_THE_COST}
        return {
            "step": self.step,
            "stage": self.stage,
            "on_policy_share": self.on_policy_share,
            "reason": self.reason,
            **figures,
            "share_of_training": self.share_of_training,
            **after_the_cost,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Decision:
        """The decision that :meth:`record` wrote down."""
        decision = {name: value for name, value in record.items() if name not in _FIGURES}
        figures = {name: record[name] for name in _FIGURES if record.get(name) is not None}
        return cls(**decision, result=BoundaryResult(**figures) if "score" in figures else None)
