"""The paper's decision, with patience and a hysteresis band: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lit_align.boundary.result import BOUNDARY, FEW_PROMPTS, BoundaryResult, Decision
from lit_align.records import Stage

Undecided = Literal["stay", "follow"]
TIES = "the judge told no answers apart"


class Choice(NamedTuple):
    """The share of on-policy pairs from here on, with its reason.

    Args:
        share: share of on-policy pairs, in [0, 1].
        reason: in words.
        stage: None takes the measured stage, or the one that the share stands for where nothing was measured.
    """

    share: float
    reason: str
    stage: Stage | None = None


class ReasonedShare(float):
    """A share that carries its :class:`Choice`.

    A schedule that calls `super().on_policy_share(...)` and returns that very number keeps the reason and the stage
    with it; one that computes another share from it returns a plain float, and has a reason of its own.

    Args:
        choice: gives the share.
    """

    choice: Choice

    def __new__(cls, choice: Choice) -> ReasonedShare:
        share = super().__new__(cls, choice.share)
        share.choice = choice
        return share


@dataclass(frozen=True)
class Switch:
    """Which of the two sources, by the score.

    A first measurement takes the better guess: injection below the threshold t (0.5 as published), fine-tuning from it
    on. After that, one measurement asks to leave the stage if its score lies beyond t by `hysteresis` on the other side
    (in injection: score >= t + h; in fine-tuning: score < t - h) and, with `undecided` "stay", if t lies outside its
    interval; and the stage is left once `patience` measurements in a row have asked.

    Undecided on fewer than 32 prompts, a score is no guess (:attr:`BoundaryResult.tells`): as the first it takes
    injection, which comes first, and later it asks for nothing.

    Args:
        patience: measurements in a row that must ask for the change, at least 1.
        hysteresis: h, in [0, 0.5).
        undecided: with the threshold inside the interval, "follow" the score all the same or "stay" where we are.
    """

    patience: int = 1
    hysteresis: float = 0.0
    undecided: Undecided = "follow"

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1 measurement, got {self.patience}")
        if not 0 <= self.hysteresis < BOUNDARY:
            raise ValueError(f"hysteresis must be in [0, 0.5), got {self.hysteresis}")
        if self.undecided not in ("stay", "follow"):
            raise ValueError(f"undecided must be 'stay' or 'follow', got {self.undecided!r}")

    def choose(self, result: BoundaryResult, history: Sequence[Decision]) -> Choice:
        """The decision on `result`, which must be informative, after the decisions in `history`."""
        guess = "" if result.decided else ", undecided"
        if not history:
            few = f", undecided on fewer than {FEW_PROMPTS} prompts: injection first"
            return _choice(result.stage, f"first measurement{guess if result.tells else few}")
        stage = Stage(history[-1].stage)
        beyond = self._beyond(result, stage)
        if not beyond and (result.score >= result.threshold) != (stage is Stage.FINE_TUNING):
            return _choice(stage, f"stays: within {self.hysteresis:g} of {result.threshold:g}")
        if not beyond:
            return _choice(stage, f"stays: the score is on the side of {_name(stage)}")
        if not result.tells:
            return _choice(stage, f"stays: undecided on fewer than {FEW_PROMPTS} prompts")
        if self.undecided == "stay" and not result.decided:
            return _choice(stage, f"stays: undecided, {result.threshold:g} is inside the interval")
        requests = 1 + self._count_requests(stage, history)
        if requests < self.patience:
            return _choice(stage, f"stays: {requests} of {self.patience} measurements in a row ask for the change")
        other = Stage.INJECTION if stage is Stage.FINE_TUNING else Stage.FINE_TUNING
        return _choice(other, f"crossed {result.threshold:g}: from {_name(stage)} to {_name(other)}{guess}")

    def _beyond(self, result: BoundaryResult, stage: Stage) -> bool:
        if stage is Stage.INJECTION:
            return result.score >= result.threshold + self.hysteresis
        return result.score < result.threshold - self.hysteresis

    def _count_requests(self, stage: Stage, history: Sequence[Decision]) -> int:
        """How many of the latest measurements asked to leave `stage` without its being left."""
        count = 0
        for past in (decision.result for decision in reversed(history) if decision.result is not None):
            # A decision that entered `stage` had a score on its side, so the count ends there.
            if not self._asks(past, stage):
                break
            count += 1
        return count

    def _asks(self, past: BoundaryResult, stage: Stage) -> bool:
        return past.tells and self._beyond(past, stage) and (past.decided or self.undecided == "follow")


def without_information(history: Sequence[Decision], has_static_pairs: bool, why: str = TIES) -> Choice:
    """The choice after a measurement that tells nothing: nothing changes.

    Args:
        history: the decisions before it.
        has_static_pairs: whether a first decision can be for off-policy pairs, which then come first.
        why: the reason why it tells nothing.
    """
    if history:
        last = history[-1]
        return Choice(last.on_policy_share, f"stays: undecided, {why}", Stage(last.stage))
    stage = Stage.INJECTION if has_static_pairs else Stage.FINE_TUNING
    return _choice(stage, f"begins with {_name(stage)}: undecided, {why}")


def _choice(stage: Stage, reason: str) -> Choice:
    return Choice(1.0 if stage is Stage.FINE_TUNING else 0.0, reason, stage)


def _name(stage: Stage) -> str:
    return stage.value.replace("_", "-")


def as_decision(
    step: int, result: BoundaryResult | None, choice: Choice, share_of_training: float | None = None
) -> Decision:
    """The record of a choice and of the measurement behind it.

    Args:
        step: the optimizer step after which it holds.
        result: the measurement; None where there was none.
        choice: what was decided.
        share_of_training: wall time of all measurements so far over that of the training.

    Raises:
        ValueError: the share is outside [0, 1].
    """
    if not 0 <= choice.share <= 1:
        raise ValueError(f"a schedule's on-policy share must be in [0, 1], got {choice.share} at step {step}")
    assumed = Stage.FINE_TUNING if choice.share >= BOUNDARY else Stage.INJECTION
    stage = choice.stage or (result.stage if result else assumed)
    unsaid = result is not None and not result.decided and "undecided" not in choice.reason
    return Decision(
        step=step,
        stage=stage.value,
        on_policy_share=float(choice.share),
        reason=f"{choice.reason}, undecided" if unsaid else choice.reason,
        result=result,
        share_of_training=share_of_training if result else None,
    )
