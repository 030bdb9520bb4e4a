"""The cross votes of a prompt, counted; and the one pass of the judge that gives votes and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lit_align.data.judging import judge_sets
from lit_align.judges.base import Judge, PointwiseJudge, graded_votes, side_by_side, votes_from_scores
from lit_align.judges.cache import CachedJudge
from lit_align.judges.recorded import RecordedScores
from lit_align.records import CandidateSet

_FROM_SCORES = (PointwiseJudge.cross_votes, CachedJudge.cross_votes)
"""Votes that are nothing but comparisons of scores."""


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
        given = self.on + self.off + self.ties
        return (self.on + self.ties / 2) / given if given else None


def count_votes(block: np.ndarray) -> PromptVotes:
    """Counts one prompt's votes.

    Args:
        block: [K_on, K_off] P(on-policy candidate wins) in [0, 1]; NaN is an abstention.

    Raises:
        ValueError: a probability is outside [0, 1].
    """
    cells = np.asarray(block, dtype=np.float64)
    given = cells[~np.isnan(cells)]
    if ((given < 0) | (given > 1)).any():
        raise ValueError(f"expected P(on-policy wins) in [0, 1], NaN for an abstention; got {cells.tolist()}")
    won, lost = int((given > 0.5).sum()), int((given < 0.5).sum())
    return PromptVotes(won, lost, given.size - won - lost, cells.size - given.size)


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
        given = self.grades[~np.isnan(self.grades)]
        return float(given.mean()) if given.size else None


def judge_prompts(judge: Judge, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[JudgedPrompt]:
    """Votes and scores of both sides from one pass of the judge.

    A judge that scores gives its scores, and the votes follow from them. One that compares gives the votes,
    and a candidate's score is its mean chance against the other side's candidates.

    Args:
        judge: stands for the true preference.
        on: N sets of on-policy candidates.
        off: N sets of off-policy candidates of the same prompts, in the same order.
    """
    if isinstance(judge, PointwiseJudge) and type(judge).cross_votes in _FROM_SCORES:
        scored = judge_sets(judge, side_by_side(on, off))
        return [_by_scores(a, b, both) for a, b, both in zip(on, off, scored, strict=True)]
    blocks = [np.asarray(block, dtype=np.float64) for block in judge.cross_votes(on, off)]
    if isinstance(judge, RecordedScores):  # the candidates carry them already
        grades = [graded_votes(_scores(a), _scores(b)) for a, b in zip(on, off, strict=True)]
        return [JudgedPrompt(a, b, block, by) for a, b, block, by in zip(on, off, blocks, grades, strict=True)]
    return [_by_votes(a, b, block) for a, b, block in zip(on, off, blocks, strict=True)]


def _by_scores(on: CandidateSet, off: CandidateSet, scored: CandidateSet) -> JudgedPrompt:
    scores = _scores(scored)
    mine, theirs = scores[: len(on.candidates)], scores[len(on.candidates) :]
    votes, grades = votes_from_scores(mine, theirs), graded_votes(mine, theirs)
    return JudgedPrompt(_with_scores(on, mine), _with_scores(off, theirs), votes, grades)


def _by_votes(on: CandidateSet, off: CandidateSet, block: np.ndarray) -> JudgedPrompt:
    mine, theirs = [_mean(row) for row in block], [_mean(1 - column) for column in block.T]
    return JudgedPrompt(_with_scores(on, mine), _with_scores(off, theirs), block, block)


def _scores(one: CandidateSet) -> list[float]:
    return [math.nan if c.score is None else c.score for c in one.candidates]


def _mean(chances: np.ndarray) -> float:
    given = chances[~np.isnan(chances)]
    return float(given.mean()) if given.size else math.nan


def _with_scores(one: CandidateSet, scores: Sequence[float]) -> CandidateSet:
    known = [None if math.isnan(score) else score for score in scores]
    return replace(one, candidates=tuple(replace(c, score=s) for c, s in zip(one.candidates, known, strict=True)))
