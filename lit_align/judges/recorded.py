"""The judge that reads scores from the rows."""

from __future__ import annotations

from collections.abc import Sequence

from lit_align.judges.answers import require_same_prompts
from lit_align.judges.base import PointwiseJudge
from lit_align.records import CandidateSet, prompt_text


class RecordedScores(PointwiseJudge):
    """Takes the scores that the candidates of a row have in the data (`score`).

    It cannot judge answers sampled in the run, as they have no score.
    """

    identity = "recorded"
    free = True

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """Returns the recorded scores.

        Raises:
            ValueError: a candidate has no score.
        """
        return [_recorded_scores(candidate_set) for candidate_set in sets]

    def score_sides(
        self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]
    ) -> list[tuple[list[float], list[float]]]:
        """See :meth:`Judge.score_sides`. Each side is read by itself, so that an error names its file and row."""
        require_same_prompts(on, off)
        return list(zip(self.score(on), self.score(off), strict=True))


def _recorded_scores(candidate_set: CandidateSet) -> list[float]:
    scores = []
    for number, candidate in enumerate(candidate_set.candidates, 1):
        if candidate.score is None:
            origin = candidate_set.where or "sampled in this run"
            raise ValueError(
                f"candidate {number} of the prompt {prompt_text(candidate_set.prompt)[:60]!r} ({origin}) has no "
                "recorded score: add `score` to the candidate in its row, or use a judge that scores text, such as "
                "RuleJudge or RewardModelJudge"
            )
        scores.append(float(candidate.score))
    return scores
