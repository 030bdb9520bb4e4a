"""Lengths of candidates, as metrics."""

from __future__ import annotations

from typing import Any, Literal, get_args

from lit_align.metrics.base import CandidateMetric
from lit_align.metrics.functional import UNDEFINED, mean_of, spread
from lit_align.metrics.words import words
from lit_align.records import Candidate, CandidateSet

LengthUnit = Literal["words", "characters", "tokens"]


class MeanLength(CandidateMetric):
    """The mean length of a prompt's candidates, averaged over prompts. An empty candidate has length 0.

    Args:
        unit: "words", "characters" (code points) or "tokens". Only candidates with token ids, such as sampled ones,
            have a length in tokens; others are left out.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    def __init__(self, unit: LengthUnit = "words", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if unit not in get_args(LengthUnit):
            raise ValueError(f"expected unit to be one of {', '.join(get_args(LengthUnit))}; got {unit!r}")
        self.unit = unit

    def figure(self, candidate_set: CandidateSet) -> float:
        return mean_of([_length(candidate, self.unit) for candidate in candidate_set.candidates])


class LengthSpread(MeanLength):
    """The mean absolute difference of each two candidates' lengths in a prompt, averaged over prompts.

    Takes the arguments of :class:`MeanLength`. A prompt with fewer than two lengths is not counted.
    """

    def figure(self, candidate_set: CandidateSet) -> float:
        return spread([_length(candidate, self.unit) for candidate in candidate_set.candidates])


class EmptyShare(CandidateMetric):
    """The share of a prompt's candidates that hold no word, averaged over prompts, in [0, 1]."""

    higher_is_better = False

    def figure(self, candidate_set: CandidateSet) -> float:
        empty = [not words(candidate.text) for candidate in candidate_set.candidates]
        return sum(empty) / len(empty) if empty else UNDEFINED


class CandidateCount(CandidateMetric):
    """The number of a prompt's candidates, averaged over prompts."""

    def figure(self, candidate_set: CandidateSet) -> float:
        return float(len(candidate_set.candidates))


def _length(candidate: Candidate, unit: LengthUnit) -> float | None:
    if unit == "tokens":
        return None if candidate.token_ids is None else float(len(candidate.token_ids))
    return float(len(words(candidate.text) if unit == "words" else candidate.text))
