"""Plain records of a judge's quality."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A mean of values in [0, 1] with a confidence interval.

    Args:
        value: the mean; None if there are no values.
        low: lower end of the interval; 0 if there are no values.
        high: upper end of the interval; 1 if there are no values.
        count: number of values.
    """

    value: float | None
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class OrderConsistency:
    """How a pairwise judge's verdict changes with the order of the two answers.

    Args:
        same_verdict: share of pairs with the same verdict in both orders.
        position_decides: share of pairs in which the answer in the same position won both times.
        first_place: how many of these pairs the first position won.
    """

    same_verdict: Share
    position_decides: Share
    first_place: int


@dataclass(frozen=True)
class LengthBias:
    """How verdicts depend on the lengths of the answers.

    Args:
        correlation: of preference (P(chosen wins) - 0.5) with the difference of lengths, each pair counted in both
            directions, in [-1, 1]; None if one of the two does not vary.
        of_labels: the same correlation of the labels, which is that of a perfect judge.
        longer_is_right: accuracy on the pairs with the longer answer labelled better.
        longer_is_wrong: accuracy on the pairs with the shorter answer labelled better.
        longer_rule: accuracy of "the longer answer is better" on the same pairs; equal lengths count half.
    """

    correlation: float | None
    of_labels: float | None
    longer_is_right: Share
    longer_is_wrong: Share
    longer_rule: Share


@dataclass(frozen=True)
class CalibrationBin:
    """Verdicts of similar confidence, max(p, 1 - p).

    Args:
        low: lower end of the bin, at least 0.5.
        high: upper end of the bin.
        count: verdicts in it, at least 1.
        confidence: their mean confidence.
        accuracy: share of correct verdicts; ties count half.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How well probabilities match the outcomes.

    Args:
        error: expected calibration error: the distance of confidence and accuracy, averaged over the bins by size.
        brier: mean (1 - P(the better answer wins))^2; always saying 0.5 gives 0.25.
        bins: the bins that hold verdicts.
    """

    error: float
    brier: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class JudgeQuality:
    """A judge's verdicts held against labelled pairs.

    Args:
        judge: the judge's identity.
        pairs: labelled pairs that it judged.
        abstentions: pairs without a verdict; no other figure counts them.
        ties: pairs with a tie as the verdict; they count half in accuracies.
        accuracy: share of the pairs with a verdict in which it prefers the better answer.
        order: consistency over both orders, for a judge that compares; None for one that scores each answer by itself.
        length: how its verdicts depend on length.
        calibration: for a judge that gives probabilities; None for others.
        warnings: reasons not to trust the judge, one sentence each.
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
