"""The cross votes of a prompt, counted; and the one pass of the judge that gives votes and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lit_align.clock import timed
from lit_align.judges.base import Judge, blaming
from lit_align.judges.vote_arrays import graded_votes, votes_from_scores
from lit_align.records import CandidateSet


class PromptVotes(NamedTuple):
    """How a prompt's cross votes fell.

    Args:
        on: votes that the on-policy side won.
        off: votes that the off-policy side won.
        ties: votes that neither side won.
        abstentions: comparisons without a verdict; they are no votes.
    """

    on: int
    off: int
    ties: int
    abstentions: int

    @property
    def share(self) -> float | None:
        """The on-policy side's share of the votes in [0, 1], ties half a vote; None without a vote."""
        votes = self.on + self.off + self.ties
        return (self.on + self.ties / 2) / votes if votes else None


def count_votes(block: np.ndarray) -> PromptVotes:
    """Counts one prompt's votes.

    Args:
        block: [K_on, K_off] P(on-policy candidate wins) in [0, 1]; NaN is an abstention.

    Raises:
        ValueError: a probability is outside [0, 1].
    """
    cells = np.asarray(block, dtype=np.float64)
    votes = cells[~np.isnan(cells)]
    if ((votes < 0) | (votes > 1)).any():
        raise ValueError(f"expected P(on-policy wins) in [0, 1], NaN for an abstention; got {cells.tolist()}")
    won = int((votes > 0.5).sum())
    lost = int((votes < 0.5).sum())
    return PromptVotes(won, lost, votes.size - won - lost, cells.size - votes.size)


@dataclass(frozen=True)
class JudgedPrompt:
    """Both sides of a prompt after judging.

    Args:
        on: the on-policy candidates with their scores (None: no verdict).
        off: the off-policy candidates with theirs.
        block: [K_on, K_off] the cross votes, P(on-policy candidate wins); NaN is an abstention.
        grades: [K_on, K_off] by how much, in [0, 1]: what `graded_votes` makes of a judge's scores, or the
            probabilities of one that compares.
    """

    on: CandidateSet
    off: CandidateSet
    block: np.ndarray
    grades: np.ndarray

    @property
    def votes(self) -> PromptVotes:
        """The cross votes, counted."""
        return count_votes(self.block)

    def share(self, graded: bool) -> float | None:
        """The on-policy side's share in [0, 1]: of the votes, or the mean grade; None without a verdict."""
        if not graded:
            return self.votes.share
        share = _mean(self.grades)
        return None if math.isnan(share) else share


@timed("judging")
def judge_prompts(judge: Judge, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[JudgedPrompt]:
    """Votes and scores of both sides from one pass of the judge.

    A judge that grades gives its scores, and the votes follow from them. Any other gives the votes, and a
    candidate's score is its mean chance against the other side's candidates.

    Args:
        judge: stands for the true preference.
        on: N sets of on-policy candidates.
        off: N sets of off-policy candidates of the same prompts, in the same order.
    """
    if not on:
        return []
    with blaming(judge, on[0].prompt, len(on)):
        if judge.grades:
            sides = judge.score_sides(on, off)
            return [_by_scores(a, b, *scores) for a, b, scores in zip(on, off, sides, strict=True)]
        blocks = [np.asarray(block, dtype=np.float64) for block in judge.cross_votes(on, off)]
    return [_by_votes(a, b, block) for a, b, block in zip(on, off, blocks, strict=True)]


def _by_scores(
    on: CandidateSet, off: CandidateSet, on_scores: Sequence[float], off_scores: Sequence[float]
) -> JudgedPrompt:
    votes = votes_from_scores(on_scores, off_scores)
    grades = graded_votes(on_scores, off_scores)
    return JudgedPrompt(_with_scores(on, on_scores), _with_scores(off, off_scores), votes, grades)


def _by_votes(on: CandidateSet, off: CandidateSet, block: np.ndarray) -> JudgedPrompt:
    on_scores = [_mean(row) for row in block]
    off_scores = [_mean(1 - column) for column in block.T]
    return JudgedPrompt(_with_scores(on, on_scores), _with_scores(off, off_scores), block, block)


def _mean(chances: np.ndarray) -> float:
    votes = chances[~np.isnan(chances)]
    return float(votes.mean()) if votes.size else math.nan


def _with_scores(candidates: CandidateSet, scores: Sequence[float]) -> CandidateSet:
    """With None where the judge gave no verdict."""
    scored = [
        replace(candidate, score=None if math.isnan(score) else float(score))
        for candidate, score in zip(candidates.candidates, scores, strict=True)
    ]
    return replace(candidates, candidates=tuple(scored))
