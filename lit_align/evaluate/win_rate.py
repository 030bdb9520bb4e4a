"""The win rate over judged answers: with an interval, at equal lengths, by category."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lit_align.boundary.interval import mean_interval
from lit_align.evaluate.judged import JudgedAnswers
from lit_align.evaluate.length_control import LengthControlled, control_length
from lit_align.records import FinishReason


@dataclass(frozen=True)
class WinRate:
    """How often a model's answers win, one vote a prompt, ties half a vote.

    Args:
        score: share of the prompts on which the model's answer wins, in [0, 1].
        low: lower end of the confidence interval.
        high: upper end.
        prompts: those with a verdict.
        wins: prompts that the model wins.
        losses: prompts that it loses.
        ties: prompts without a winner.
        abstentions: prompts without a verdict; they count nowhere else.
        length_controlled: the same at equal lengths.
        same_in_both_orders: of a judge that sees the answers in an order, the share of prompts on which both orders
            give the same verdict; None of any other judge.
        mean_length: of the model's answers, in characters.
        opponent_mean_length: of the others.
        cut: share of the model's answers that ended at the length limit.
        opponent_cut: of the others.
        mean_score: of the model's answers, by the judge; None where it gave none that is finite.
        opponent_mean_score: of the others.
    """

    score: float
    low: float
    high: float
    prompts: int
    wins: int
    losses: int
    ties: int
    abstentions: int
    length_controlled: LengthControlled
    same_in_both_orders: float | None
    mean_length: float
    opponent_mean_length: float
    cut: float
    opponent_cut: float
    mean_score: float | None
    opponent_mean_score: float | None


def win_rate_of(judged: Sequence[JudgedAnswers], confidence: float = 0.95) -> WinRate:
    """Counts verdicts.

    Args:
        judged: the answers to distinct prompts; an interval takes them to be independent.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: there is no verdict.
    """
    voted = [(pair, pair.share) for pair in judged if pair.share is not None]
    if not voted:
        raise ValueError(
            f"expected verdicts on {len(judged)} prompts, got none: the judge abstained from all. Ask it by itself "
            "with `lit-align judge`, or take another one"
        )
    shares = [share for _, share in voted if share is not None]
    differences = [len(pair.answer.text) - len(pair.opponent.text) for pair, _ in voted]
    total = math.fsum(shares)
    low, high = mean_interval(total, math.fsum(share**2 for share in shares), len(shares), confidence)
    verdicts = Counter(pair.verdict for pair in judged)
    agreeing = [same for pair in judged if (same := pair.same_in_both_orders) is not None]
    answer_score, opponent_score = _mean_scores(judged)
    return WinRate(
        score=total / len(shares),
        low=low,
        high=high,
        prompts=len(shares),
        wins=verdicts["win"],
        losses=verdicts["loss"],
        ties=verdicts["tie"],
        abstentions=verdicts["abstained"],
        length_controlled=control_length(shares, differences, confidence),
        same_in_both_orders=fmean(agreeing) if agreeing else None,
        mean_length=fmean(len(pair.answer.text) for pair in judged),
        opponent_mean_length=fmean(len(pair.opponent.text) for pair in judged),
        cut=fmean(pair.answer.finish_reason is FinishReason.LENGTH for pair in judged),
        opponent_cut=fmean(pair.opponent.finish_reason is FinishReason.LENGTH for pair in judged),
        mean_score=answer_score,
        opponent_mean_score=opponent_score,
    )


def win_rates_by_category(judged: Sequence[JudgedAnswers], confidence: float = 0.95) -> dict[str, WinRate]:
    """The win rate of each category, the one with most prompts first; nothing where no prompt has a category.

    A category without any verdict is left out.
    """
    groups: defaultdict[str, list[JudgedAnswers]] = defaultdict(list)
    for pair in judged:
        if pair.category is not None:
            groups[pair.category].append(pair)
    ranked = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return {
        name: win_rate_of(group, confidence) for name, group in ranked if any(pair.share is not None for pair in group)
    }


def _mean_scores(judged: Sequence[JudgedAnswers]) -> tuple[float | None, float | None]:
    """Over the prompts on which both scores are finite."""
    scores = [
        (pair.answer.score, pair.opponent.score)
        for pair in judged
        if pair.answer.score is not None and pair.opponent.score is not None
    ]
    finite = [both for both in scores if math.isfinite(sum(both))]
    if not finite:
        return None, None
    return fmean(answer for answer, _ in finite), fmean(opponent for _, opponent in finite)
