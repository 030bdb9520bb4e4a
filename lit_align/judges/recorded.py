"""The judge that reads the scores out of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_align.judges.base import PointwiseJudge, require_same_prompts, votes_from_scores
from lit_align.records import CandidateSet, prompt_text


class RecordedScores(PointwiseJudge):
    """Takes the scores that the candidates carry (the `score` in a row's candidates).

    It cannot judge answers that are sampled in the run: those have no score yet.
    """

    identity = "recorded"

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """The recorded scores.

        Raises:
            ValueError: a candidate has none.
        """
        return [[_recorded(one, n) for n in range(len(one.candidates))] for one in sets]

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """As any judge's. Each side is read apart, so that an error names the file and row of that side."""
        require_same_prompts(on, off)
        return [votes_from_scores(a, b) for a, b in zip(self.score(on), self.score(off), strict=True)]


def _recorded(one: CandidateSet, n: int) -> float:
    score = one.candidates[n].score
    if score is None:
        raise ValueError(
            f"candidate {n + 1} of the prompt {prompt_text(one.prompt)[:60]!r} ({one.where or 'sampled in this run'}) "
            "has no recorded score: add `score` to the candidate in its row, or take a judge that scores text, "
            "such as RuleJudge or RewardModelJudge"
        )
    return float(score)
