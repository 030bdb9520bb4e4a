"""The answers in candidate sets, each with its prompt, for judges that score an answer by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_align.records import Candidate, CandidateSet, Prompt, unscored

Answer = tuple[Prompt, Candidate]
"""A prompt and a candidate without its score. Equal answers are equal keys."""


def answers_of(sets: Sequence[CandidateSet]) -> list[Answer]:
    """Lists all answers, set after set."""
    answers: list[Answer] = []
    for candidate_set in sets:
        answers += [(candidate_set.prompt, unscored(candidate)) for candidate in candidate_set.candidates]
    return answers


def scores_by_set(sets: Sequence[CandidateSet], scores: Mapping[Answer, float]) -> list[list[float]]:
    """Looks up the score of each candidate of each set."""
    by_set: list[list[float]] = []
    for candidate_set in sets:
        by_set.append([scores[answer] for answer in answers_of([candidate_set])])
    return by_set
