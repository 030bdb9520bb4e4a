"""Two answers to each prompt, judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lit_align.judges.answers import side_by_side
from lit_align.judges.base import Judge
from lit_align.judges.vote_arrays import votes_from_scores
from lit_align.records import Candidate, CandidateSet, Prompt

_PROMPTS_AT_ONCE = 32  # judged together: large enough to batch, small enough for a bar that moves


@dataclass(frozen=True)
class JudgedAnswers:
    """An answer and the one that it is compared with.

    Args:
        prompt: the chat so far.
        answer: of the model that is evaluated; its score is the judge's, None where it abstained.
        opponent: of what it is compared with.
        first_wins: P(the answer wins) in [0, 1], the mean over both orders of a judge that sees an order; 0.5 is a
            tie, NaN an abstention.
        orders: of a judge that sees the answers in an order, P(shown first wins) for the answer and for the opponent.
        category: of the prompt, where its row carries one.
        where: file and row of the prompt.
    """

    prompt: Prompt
    answer: Candidate
    opponent: Candidate
    first_wins: float
    orders: tuple[float, float] | None = None
    category: str | None = None
    where: str = ""

    @property
    def share(self) -> float | None:
        """The answer's share of the prompt's vote: 1 for a win, 0.5 for a tie, 0 for a loss; None without a verdict."""
        if math.isnan(self.first_wins):
            return None
        return 0.5 + 0.5 * ((self.first_wins > 0.5) - (self.first_wins < 0.5))

    @property
    def verdict(self) -> str:
        """In a word: win, tie, loss or abstained."""
        return "abstained" if self.share is None else {1.0: "win", 0.5: "tie", 0.0: "loss"}[self.share]

    @property
    def same_in_both_orders(self) -> bool | None:
        """Whether both orders give the same verdict; None of a judge that sees no order, or that abstained."""
        if self.orders is None or any(map(math.isnan, self.orders)):
            return None
        shown_first, shown_second = self.orders
        return (shown_first > 0.5, shown_first < 0.5) == (shown_second < 0.5, shown_second > 0.5)


def judge_answers(
    judge: Judge,
    answers: Sequence[CandidateSet],
    opponents: Sequence[CandidateSet],
    category: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[JudgedAnswers]:
    """Compares one answer with one other for each prompt. A judge that sees an order is asked in both.

    Args:
        judge: stands for the true preference.
        answers: N sets of one answer each.
        opponents: N sets of one answer each to the same prompts, in the same order; rules get their rows.
        category: the column of the rows that holds the prompt's category.
        progress: called with the number of prompts judged since the last call.
    """
    judged: list[JudgedAnswers] = []
    for start in range(0, len(answers), _PROMPTS_AT_ONCE):
        batch = slice(start, start + _PROMPTS_AT_ONCE)
        of_batch = _judge(judge, answers[batch], opponents[batch], category)
        judged += of_batch
        if progress is not None:
            progress(len(of_batch))
    return judged


def _judge(
    judge: Judge, answers: Sequence[CandidateSet], opponents: Sequence[CandidateSet], category: str | None
) -> list[JudgedAnswers]:
    pairs = side_by_side(answers, opponents)
    if judge.grades:
        scores = [(first[0], second[0]) for first, second in judge.score_sides(answers, opponents)]
        chances = [float(votes_from_scores([first], [second])[0, 0]) for first, second in scores]
        orders: list[tuple[float, float] | None] = [None] * len(pairs)
    else:
        verdicts = judge.judge_pairs(pairs)
        chances = [verdict.first_wins for verdict in verdicts]
        scores = [(chance, 1 - chance) for chance in chances]
        orders = [verdict.orders for verdict in verdicts]
    return [
        _judged(pair, *both, chance, of_pair, category)
        for pair, both, chance, of_pair in zip(pairs, scores, chances, orders, strict=True)
    ]


def _judged(
    pair: CandidateSet,
    score: float,
    opponent_score: float,
    first_wins: float,
    orders: tuple[float, float] | None,
    category: str | None,
) -> JudgedAnswers:
    answer, opponent = pair.candidates
    name = pair.row.get(category) if category else None
    return JudgedAnswers(
        pair.prompt,
        _with_score(answer, score),
        _with_score(opponent, opponent_score),
        first_wins,
        orders,
        None if name is None else str(name),
        pair.where,
    )


def _with_score(candidate: Candidate, score: float) -> Candidate:
    return replace(candidate, score=None if math.isnan(score) else float(score))
