"""How good a judge is, by its verdicts on labelled pairs; and doubts about it that verdicts without labels raise.

Plain numbers in, plain numbers out: no judge is asked here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from lit_align.judges.quality_record import (
    Calibration,
    CalibrationBin,
    JudgeQuality,
    LengthBias,
    OrderConsistency,
    Share,
)

BINS = 10
LENGTH_ALONE = 0.95
_TURNED_ROUND = "Are chosen and rejected swapped in the data, or is its rule, rubric or scale turned round?"


def quality_of(
    judge: str,
    votes: Sequence[float],
    lengths: Sequence[tuple[float, float]],
    orders: Sequence[tuple[float, float]] | None = None,
    groups: Sequence[Hashable] | None = None,
    probabilities: bool = True,
    confidence: float = 0.95,
) -> JudgeQuality:
    """Measures verdicts against labels.

    Args:
        judge: its identity.
        votes: P(better answer wins) of each pair in [0, 1]; 0.5 is a tie, NaN an abstention.
        lengths: of the better and the worse answer of each pair, in any one unit.
        orders: of a judge that compares, for each pair P(first wins) with the better answer first, then with the
            worse one first.
        groups: what each pair belongs to, such as its prompt. Pairs of a group are not independent: intervals
            are widened by as much as they agree.
        probabilities: whether votes other than 0, 0.5 and 1 are meant as probabilities.
        confidence: of the intervals, in (0, 1).
    """
    all_votes = np.asarray(votes, dtype=np.float64)
    judged = ~np.isnan(all_votes)
    vote = all_votes[judged]
    length = np.asarray(lengths, dtype=np.float64).reshape(-1, 2)[judged]
    group = np.asarray(_number(groups if groups is not None else range(len(all_votes))))[judged]
    right = _right(vote)
    measures = _Measures(group, confidence)
    order = None if orders is None else _order(np.asarray(orders, dtype=np.float64)[judged], measures)
    bias = _length_bias(vote, right, length, measures)
    graded = probabilities and bool(np.isin(vote, (0.0, 0.5, 1.0)).sum() < len(vote))
    return JudgeQuality(
        judge=judge,
        pairs=len(all_votes),
        abstentions=int((~judged).sum()),
        ties=int((vote == 0.5).sum()),
        accuracy=measures.share(right),
        order=order,
        length=bias,
        calibration=calibration(vote) if graded else None,
        warnings=tuple(_warnings(measures.share(right), order, bias)),
    )


def wilson(share: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share (Journal of the American Statistical Association 22, 1927).

    Args:
        share: mean of values in [0, 1]. For values between 0 and 1, such as ties that count half, it is too wide
            rather than too narrow.
        count: number of independent values, above 0; need not be whole.
        confidence: in (0, 1).

    Example:
        >>> low, high = wilson(0.5, 100)
        >>> round(low, 4), round(high, 4)
        (0.4038, 0.5962)
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    low = 0.0 if share == 0 else centre - half  # exact at the ends, where rounding would leave 1e-17
    return low, 1.0 if share == 1 else centre + half


def calibration(votes: np.ndarray) -> Calibration:
    """Expected calibration error (Guo et al., arXiv:1706.04599, Eq. 3) with 10 bins of [0.5, 1], and Brier score.

    Args:
        votes: [N] P(the better answer wins), N at least 1.
    """
    confidence = np.maximum(votes, 1 - votes)
    right = _right(votes)
    index = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = []
    for n in range(BINS):
        inside = index == n
        if inside.any():
            low = 0.5 + n / (2 * BINS)
            high = 0.5 + (n + 1) / (2 * BINS)
            count = int(inside.sum())
            bins.append(CalibrationBin(low, high, count, float(confidence[inside].mean()), float(right[inside].mean())))
    error = sum(group.count * abs(group.confidence - group.accuracy) for group in bins) / len(votes)
    return Calibration(error, float(((1 - votes) ** 2).mean()), tuple(bins))


def longer_wins(blocks: Sequence[np.ndarray], on: Sequence[Sequence[int]], off: Sequence[Sequence[int]]) -> Share:
    """How often the longer of two answers won, from cross votes only.

    Args:
        blocks: votes, each [K_on, K_off], as of :meth:`lit_align.judges.Judge.cross_votes`.
        on: the lengths of each prompt's on-policy candidates.
        off: the lengths of its off-policy ones.

    Returns:
        The share among verdicts that are no tie, on answers of different length.
    """
    won: list[float] = []
    group: list[int] = []
    for n, (block, a, b) in enumerate(zip(blocks, on, off, strict=True)):
        difference = np.subtract.outer(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
        decided = ~np.isnan(block) & (block != 0.5) & (difference != 0)
        won += ((block > 0.5) == (difference > 0))[decided].astype(float).tolist()
        group += [n] * int(decided.sum())
    return _Measures(np.asarray(group, dtype=np.int64), 0.95).share(np.asarray(won))


def bias_warning(blocks: Sequence[np.ndarray], on: Sequence[Sequence[int]], off: Sequence[Sequence[int]]) -> str | None:
    """A doubt about the judge that a measurement's own votes raise; None without one.

    Without labels a judge that only looks at length cannot be told from one whose longer answers happen to be better,
    except where nearly all verdicts follow length: at least 95 % of them, or of the shorter answers' wins.

    Args:
        blocks: see :func:`longer_wins`.
        on: see :func:`longer_wins`.
        off: see :func:`longer_wins`.
    """
    longer = longer_wins(blocks, on, off)
    verdicts = np.concatenate([np.asarray(block, dtype=np.float64).ravel() for block in blocks]) if blocks else ()
    votes = np.asarray(verdicts)[~np.isnan(verdicts)]
    if len(votes) and (votes == 0.5).mean() > 0.5:
        return (
            f"{100 * (votes == 0.5).mean():.0f} % of the judge's verdicts are ties: it hardly tells these answers "
            "apart, or contradicts itself between the two orders (lit-align judge says which)."
        )
    if longer.value is None or max(longer.value, 1 - longer.value) < LENGTH_ALONE or longer.count < 20:
        return None
    which, share = ("longer", longer.value) if longer.value > 0.5 else ("shorter", 1 - longer.value)
    return (
        f"The {which} answer won {100 * share:.0f} % of {longer.count} comparisons: the judge seems to prefer by "
        "length alone (lit-align judge tells it from a judge that is right)."
    )


def contradiction_warning(right: Sequence[float], groups: Sequence[Hashable]) -> str | None:
    """A doubt about a judge whose verdicts on labelled pairs turn the labels round.

    Args:
        right: for each pair 1 where the judge prefers the answer that is labelled better, 0.5 for a tie, else 0.
        groups: what each pair belongs to, see :func:`quality_of`.

    Returns:
        A warning where the share of right verdicts lies below 0.5, with a chance of error of 1 %.
    """
    share = _Measures(np.asarray(_number(groups), dtype=np.int64), 0.99).share(np.asarray(right, dtype=np.float64))
    if share.value is None or share.high >= 0.5:
        return None
    return (
        f"It contradicts the data's labels: it is right in {_percent(share)} of {share.count} labelled pairs, which is "
        f"worse than a coin. {_TURNED_ROUND}"
    )


class _Measures:
    """Shares with intervals of values that come in groups."""

    def __init__(self, groups: np.ndarray, confidence: float) -> None:
        self.groups = groups
        self.confidence = confidence

    def share(self, values: np.ndarray, where: np.ndarray | None = None) -> Share:
        if where is not None:
            return _Measures(self.groups[where], self.confidence).share(values[where])
        if len(values) == 0:
            return Share(None, 0.0, 1.0, 0)
        mean = float(values.mean())
        low, high = wilson(mean, self._independent(values, mean), self.confidence)
        return Share(mean, low, high, len(values))

    def _independent(self, values: np.ndarray, mean: float) -> float:
        """How many independent values say as much (the design effect of cluster samples; Kish, 1965)."""
        sums = np.bincount(self.groups, weights=values - mean)[np.unique(self.groups)]
        spread = float(((values - mean) ** 2).sum())
        if len(sums) < 2 or spread == 0.0:
            return float(len(sums))
        effect = float((sums**2).sum()) / spread
        return len(values) / max(1.0, effect)


def _number(groups: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]


def _right(votes: np.ndarray) -> np.ndarray:
    return 0.5 * ((votes > 0.5).astype(np.float64) + (votes >= 0.5))


def _order(orders: np.ndarray, measures: _Measures) -> OrderConsistency:
    better_first, worse_first = orders.reshape(-1, 2).T
    sides = np.sign(better_first - 0.5), np.sign(0.5 - worse_first)  # +1: for the better answer, whatever its place
    same = (sides[0] == sides[1]).astype(np.float64)
    place = (sides[0] * sides[1] == -1).astype(np.float64)
    first = int(((sides[0] == 1) & (sides[1] == -1)).sum())
    return OrderConsistency(measures.share(same), measures.share(place), first)


def _length_bias(vote: np.ndarray, right: np.ndarray, length: np.ndarray, measures: _Measures) -> LengthBias:
    difference = length[:, 0] - length[:, 1]
    return LengthBias(
        correlation=_correlation(vote - 0.5, difference),
        of_labels=_correlation(np.full(len(vote), 0.5), difference),
        longer_is_right=measures.share(right, difference > 0),
        longer_is_wrong=measures.share(right, difference < 0),
        longer_rule=measures.share(0.5 * ((difference > 0).astype(np.float64) + (difference >= 0))),
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's over (a, b) and (-a, -b): which answer of a pair is called the first must not matter."""
    size = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else None


def _warnings(accuracy: Share, order: OrderConsistency | None, length: LengthBias) -> list[str]:
    warnings = []
    if accuracy.value is not None and accuracy.high < 0.5:
        warnings.append(f"It is worse than a coin: it is right in {_percent(accuracy)} of the pairs. {_TURNED_ROUND}")
    if order is not None and order.position_decides.low > 0.5:
        decided = order.position_decides.count * (order.position_decides.value or 0.0)
        warnings.append(
            f"It prefers by order: in {_percent(order.position_decides)} of the pairs the same place won in both "
            f"orders, mostly the {'first' if 2 * order.first_place > decided else 'second'} (named so where that "
            "interval lies above 50 %)."
        )
    longer = length.longer_is_right
    shorter = length.longer_is_wrong
    for which, right, other in (("longer", longer, shorter), ("shorter", shorter, longer)):
        if right.low > 0.5 and other.high < 0.5:
            warnings.append(
                f"It prefers by length: it is right in {_percent(right)} of the pairs whose {which} answer is the "
                f"better one, and in {_percent(other)} of the others (named so where the two intervals lie "
                "on different sides of 50 %)."
            )
    if accuracy.value is not None and accuracy.low <= 0.5 and not warnings:
        warnings.append("Its accuracy cannot be told from a coin's: the interval reaches down to 50 %.")
    return warnings


def _percent(share: Share) -> str:
    return f"{100 * (share.value or 0.0):.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"
