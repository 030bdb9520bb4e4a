"""A judge made of several, so that length, format or a second opinion can be held in check."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_align.judges.base import (
    ABSTAINED,
    Judge,
    PointwiseJudge,
    mean_of_opponents,
    side_by_side,
    votes_from_scores,
)
from lit_align.records import CandidateSet


@dataclass
class JudgePart:
    """A judge and what it has to say in a :class:`CombinedJudge`.

    Args:
        judge: any judge.
        weight: of its votes in the mean, at least 0; with 0 it only vetoes.
        scale: of a judge that scores: P(a wins) = sigmoid((score of a - score of b) / scale), so a difference of
            `scale` counts as 73 %. For a reward model trained as Bradley-Terry, 1. None: the higher score wins, 1
            or 0, however small the difference.
        veto_below: of a judge that scores: an answer whose score is below loses, whatever the others say.
    """

    judge: Judge
    weight: float = 1.0
    scale: float | None = None
    veto_below: float | None = None


class CombinedJudge(Judge):
    """The weighted mean of several judges' votes, under the vetoes of some.

    Scores of different judges have no common unit, but P(a wins) has: each part gives its probability (see
    :class:`JudgePart`) and the mean, weighted by `weight`, is the combined one. Two answers of a prompt suffice for
    that, no spread has to be estimated, and no part can outvote the others by a large number. With hard votes (no
    `scale`, and a judge that is sure) the heavier of two judges always decides.

    An answer that any part vetoes loses against each that none vetoes; two vetoed ones tie. A comparison that no
    veto decides is an abstention if any part abstained in it: the others alone are another judge. `score` is the
    mean probability of beating the others of the set, as of any judge that compares; a vetoed answer scores below
    each that is not.

    Args:
        parts: the judges, each with its weight, scale and veto.

    Raises:
        ValueError: no weight is above 0; a weight is negative or a scale not above 0; a part that compares has a
            scale or a veto.
    """

    def __init__(self, parts: list[JudgePart]) -> None:
        for part in parts:
            _check(part)
        self._total = sum(part.weight for part in parts)
        if not self._total > 0:
            raise ValueError(f"expected at least one part with a weight above 0, got {len(parts)} parts without")
        self._parts = list(parts)
        self.parts = tuple(part.judge for part in parts)

    @property
    def identity(self) -> str:  # type: ignore[override]
        """Names all parts with their settings."""
        parts = [[p.judge.identity, p.weight / self._total, p.scale, p.veto_below] for p in self._parts]
        return f"combined:{json.dumps(parts)}"

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """The mean probability of beating the others of the set, 0.5 for a lone one."""
        return [mean_of_opponents(votes, alone=0.5) for votes in self.votes_within(sets)]

    def votes_within(self, sets: Sequence[CandidateSet]) -> list[np.ndarray]:
        """See :meth:`Judge.votes_within`."""
        sizes = [len(one.candidates) for one in sets]
        scores = [_scores(part, sets) for part in self._parts]
        votes = [
            part.judge.votes_within(sets) if of_part is None else [_votes(part, s, s) for s in of_part]
            for part, of_part in zip(self._parts, scores, strict=True)
        ]
        vetoes = self._vetoes(scores, sizes)
        return [self._combined([v[n] for v in votes], vetoes[n], vetoes[n]) for n in range(len(sets))]

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """See :meth:`Judge.cross_votes`."""
        joint = side_by_side(on, off)
        split = [len(one.candidates) for one in on]
        scores = [_scores(part, joint) for part in self._parts]
        votes = [
            part.judge.cross_votes(on, off)
            if of_part is None
            else [_votes(part, s[:k], s[k:]) for s, k in zip(of_part, split, strict=True)]
            for part, of_part in zip(self._parts, scores, strict=True)
        ]
        vetoes = self._vetoes(scores, [len(one.candidates) for one in joint])
        return [self._combined([v[n] for v in votes], vetoes[n][:k], vetoes[n][k:]) for n, k in enumerate(split)]

    def _vetoes(self, scores: Sequence[list[np.ndarray] | None], sizes: Sequence[int]) -> list[np.ndarray]:
        """For each set [K]: 1 where a part vetoes, 0 where none does, NaN where none does but one abstained."""
        vetoes = [np.zeros(size) for size in sizes]
        for part, of_part in zip(self._parts, scores, strict=True):
            if part.veto_below is None or of_part is None:
                continue
            for n, one in enumerate(of_part):
                mine = np.where(np.isnan(one), ABSTAINED, one < part.veto_below)
                vetoes[n] = np.where((vetoes[n] == 1) | (mine == 1), 1.0, vetoes[n] + mine)
        return vetoes

    def _combined(self, votes: Sequence[np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """P(a wins) [K_a, K_b] from each part's votes and from what is vetoed on each side."""
        weighted = [part.weight * (v - 0.5) for part, v in zip(self._parts, votes, strict=True) if part.weight > 0]
        mean = 0.5 + np.sum(weighted, axis=0) / self._total  # so that ties stay ties to the last bit
        left, right = np.broadcast_arrays(a[:, None], b[None, :])
        decided = 0.5 + (right - left) / 2  # 1 where b alone is vetoed, 0 where a alone is, 0.5 where both are
        return np.where(np.isnan(decided), ABSTAINED, np.where(left + right > 0, decided, mean))


def _scores(part: JudgePart, sets: Sequence[CandidateSet]) -> list[np.ndarray] | None:
    """The scores of a part that scores; None of one that compares."""
    if not isinstance(part.judge, PointwiseJudge):
        return None
    return [np.asarray(scores, dtype=np.float64) for scores in part.judge.score(sets)]


def _votes(part: JudgePart, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if part.scale is None:
        return votes_from_scores(a.tolist(), b.tolist())
    # sigmoid(x) = (1 + tanh(x / 2)) / 2, which does not overflow
    return 0.5 + np.tanh((a[:, None] - b[None, :]) / (2 * part.scale)) / 2


def _check(part: JudgePart) -> None:
    name = type(part.judge).__name__
    if not (part.weight >= 0 and math.isfinite(part.weight)):
        raise ValueError(f"expected a weight of at least 0 for {name}, got {part.weight}")
    if part.scale is not None and not part.scale > 0:
        raise ValueError(f"expected a scale above 0 for {name}, got {part.scale}")
    if not isinstance(part.judge, PointwiseJudge) and (part.scale is not None or part.veto_below is not None):
        raise ValueError(
            f"{name} compares and gives no score of its own, so it takes no scale and no veto_below; a judge that "
            "scores does, such as RuleJudge or RewardModelJudge"
        )
    if part.weight == 0 and part.veto_below is None:
        raise ValueError(f"{name} has a weight of 0 and no veto_below: it would say nothing")
