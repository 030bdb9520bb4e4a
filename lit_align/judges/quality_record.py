"""What is known of a judge's quality, as plain records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A mean of values in [0, 1] with a confidence interval.

    Args:
        value: the mean; None where there is nothing to take it of.
        low: lower end of the interval, 0 where there is nothing.
        high: upper end, 1 where there is nothing.
        count: number of values.
    """

    value: float | None
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class OrderConsistency:
    """What a pairwise judge says when the same two answers are shown in both orders.

    Args:
        same_verdict: share of pairs with the same verdict in both orders.
        position_decides: share of pairs where the answer in the same place won both times.
        first_place: of the pairs where the place decided, how many the first place won.
    """

    same_verdict: Share
    position_decides: Share
    first_place: int


@dataclass(frozen=True)
class LengthBias:
    """How verdicts go with the lengths of the answers.

    Args:
        correlation: of preference (P(chosen wins) - 0.5) with the difference of lengths, each pair counted in both
            directions, in [-1, 1]; None where one of the two does not vary.
        of_labels: the same of the labels: what a judge without fault would show.
        longer_is_right: accuracy on the pairs whose better answer is the longer one.
        longer_is_wrong: accuracy on those whose better answer is the shorter one.
        longer_rule: accuracy of "the longer answer is better" on the same pairs; equal lengths count half.
    """

    correlation: float | None
    of_labels: float | None
    longer_is_right: Share
    longer_is_wrong: Share
    longer_rule: Share


@dataclass(frozen=True)
class CalibrationBin:
    """Verdicts of about the same confidence, max(p, 1 - p).

    Args:
        low: lower end of the bin, from 0.5 on.
        high: upper end.
        count: verdicts in it, at least 1.
        confidence: their mean confidence.
        accuracy: the share of them that is right; ties count half.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities come true.

    Args:
        error: expected calibration error: mean distance of confidence and accuracy over the bins, by their size.
        brier: mean (1 - P(the better answer wins))^2; a coin that says 0.5 gets 0.25.
        bins: the bins that hold verdicts.
    """

    error: float
    brier: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class JudgeQuality:
    """A judge against labelled pairs.

    Args:
        judge: its identity.
        pairs: labelled pairs it was shown.
        abstentions: pairs without a verdict; they count nowhere below.
        ties: pairs it holds to be equal; they count half in accuracies.
        accuracy: share of the other pairs where it prefers the better answer.
        order: of a judge that compares; None where each answer is scored for itself.
        length: how its verdicts go with length.
        calibration: of a judge that gives probabilities; None of others.
        warnings: what must be known before it is trusted, one sentence each.
    """

    judge: str
    pairs: int
    abstentions: int
    ties: int
    accuracy: Share
    order: OrderConsistency | None
    length: LengthBias
    calibration: Calibration | None
    warnings: tuple[str, ...]
