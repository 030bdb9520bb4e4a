"""A judge made of several judges, for a second opinion or for vetoes by length or format."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_align.judges.answers import side_by_side
from lit_align.judges.base import Judge
from lit_align.judges.vote_arrays import ABSTAINED, mean_of_opponents, votes_from_scores
from lit_align.records import CandidateSet

_Scores = list[np.ndarray]  # for each set the scores [K] of its candidates


@dataclass
class JudgePart:
    """A judge and its influence in a :class:`CombinedJudge`.

    Args:
        judge: any judge.
        weight: weight of its votes in the mean, at least 0; with 0 it only vetoes.
        scale: only for a judge that scores: P(a wins) = sigmoid((score of a - score of b) / scale), so a difference
            of `scale` counts as 73 %. Use 1 for a reward model trained as Bradley-Terry. None lets the higher score
            win with probability 1, however small the difference.
        veto_below: only for a judge that scores: an answer with a lower score loses, whatever the other judges say.
    """

    judge: Judge
    weight: float = 1.0
    scale: float | None = None
    veto_below: float | None = None


class CombinedJudge(Judge):
    """The weighted mean of several judges' votes; some judges may also veto answers.

    Scores of different judges have no common unit, but probabilities have: each part gives P(a wins) (see
    :class:`JudgePart`), and the verdict is their mean, weighted by `weight`. Two answers are enough for that, no
    spread has to be estimated, and no part can outvote the others by a large score. If all votes are 0 or 1 (no
    `scale`, or a judge that is sure), the heavier of two judges always decides.

    An answer that any part vetoes loses to each answer without a veto; two vetoed answers tie. If no veto decides a
    comparison and any part abstains from it, the verdict is an abstention, as the remaining parts would be a
    different judge. `score` is the mean probability of beating the other answers of the set, as for any judge that
    compares; vetoed answers score below all others.

    Args:
        parts: the judges with their weights, scales and vetoes.

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
        settings = [[p.judge.identity, p.weight / self._total, p.scale, p.veto_below] for p in self._parts]
        return f"combined:{json.dumps(settings)}"

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """Scores by the mean probability of beating the other candidates of the set, 0.5 for a single candidate."""
        return [mean_of_opponents(votes, alone=0.5) for votes in self.votes_within(sets)]

    def votes_within(self, sets: Sequence[CandidateSet]) -> list[np.ndarray]:
        """See :meth:`Judge.votes_within`."""
        scores = [_score(part, sets) for part in self._parts]
        votes = [_vote_within(part, sets, s) for part, s in zip(self._parts, scores, strict=True)]
        vetoes = self._vetoes(scores, sets)
        return [
            self._combine(set_votes, vetoed, vetoed)
            for set_votes, vetoed in zip(zip(*votes, strict=True), vetoes, strict=True)
        ]

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """See :meth:`Judge.cross_votes`."""
        joint = side_by_side(on, off)
        scores = [_score(part, joint) for part in self._parts]
        votes = [_vote_across(part, on, off, s) for part, s in zip(self._parts, scores, strict=True)]
        vetoes = self._vetoes(scores, joint)
        counts = [len(candidate_set.candidates) for candidate_set in on]
        return [
            self._combine(set_votes, vetoed[:k], vetoed[k:])
            for set_votes, vetoed, k in zip(zip(*votes, strict=True), vetoes, counts, strict=True)
        ]

    def _vetoes(self, scores: Sequence[_Scores | None], sets: Sequence[CandidateSet]) -> list[np.ndarray]:
        """For each set [K]: 1 if a part vetoes the candidate; else NaN if a part with a veto abstains, else 0."""
        vetoes = [np.zeros(len(candidate_set.candidates)) for candidate_set in sets]
        for part, part_scores in zip(self._parts, scores, strict=True):
            if part.veto_below is None or part_scores is None:
                continue
            for n, set_scores in enumerate(part_scores):
                vetoed = np.where(np.isnan(set_scores), ABSTAINED, set_scores < part.veto_below)
                vetoes[n] = np.where((vetoes[n] == 1) | (vetoed == 1), 1.0, vetoes[n] + vetoed)
        return vetoes

    def _combine(self, votes: Sequence[np.ndarray], vetoed_a: np.ndarray, vetoed_b: np.ndarray) -> np.ndarray:
        """P(a wins) [K_a, K_b] from each part's votes and the vetoes of both sides."""
        weighted = [part.weight * (v - 0.5) for part, v in zip(self._parts, votes, strict=True) if part.weight > 0]
        mean = 0.5 + np.sum(weighted, axis=0) / self._total  # so that ties stay ties to the last bit
        a, b = np.broadcast_arrays(vetoed_a[:, None], vetoed_b[None, :])
        by_veto = 0.5 + (b - a) / 2  # 1 if only b is vetoed, 0 if only a is, 0.5 if both are
        return np.where(np.isnan(by_veto), ABSTAINED, np.where(a + b > 0, by_veto, mean))


def _score(part: JudgePart, sets: Sequence[CandidateSet]) -> _Scores | None:
    """The scores of a part that scores; None for a part that compares."""
    if not part.judge.grades:
        return None
    return [np.asarray(scores, dtype=np.float64) for scores in part.judge.score(sets)]


def _vote_within(part: JudgePart, sets: Sequence[CandidateSet], scores: _Scores | None) -> list[np.ndarray]:
    if scores is None:
        return part.judge.votes_within(sets)
    return [_votes(part, s, s) for s in scores]


def _vote_across(
    part: JudgePart, on: Sequence[CandidateSet], off: Sequence[CandidateSet], scores: _Scores | None
) -> list[np.ndarray]:
    """The votes between two sets; `scores` are of both together, the on-policy candidates first."""
    if scores is None:
        return part.judge.cross_votes(on, off)
    counts = [len(candidate_set.candidates) for candidate_set in on]
    return [_votes(part, s[:k], s[k:]) for s, k in zip(scores, counts, strict=True)]


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
    if not part.judge.grades and (part.scale is not None or part.veto_below is not None):
        raise ValueError(
            f"{name} compares and gives no score of its own, so it takes no scale and no veto_below; a judge that "
            "scores does, such as RuleJudge or RewardModelJudge"
        )
    if part.weight == 0 and part.veto_below is None:
        raise ValueError(f"{name} has a weight of 0 and no veto_below: it would say nothing")
