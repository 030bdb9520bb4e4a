"""Candidate sets as judges take them: answer by answer, or both sides of a prompt as one set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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


def side_by_side(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[CandidateSet]:
    """Joins both sets of each prompt, on-policy candidates first, with the row of the off-policy set."""
    require_same_prompts(on, off)
    return [replace(b, candidates=a.candidates + b.candidates) for a, b in zip(on, off, strict=True)]


def require_same_prompts(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> None:
    """Raises ValueError unless each two sets at the same index have the same prompt."""
    if len(on) != len(off):
        raise ValueError(f"cross_votes needs as many on-policy as off-policy sets, got {len(on)} and {len(off)}")
    for a, b in zip(on, off, strict=True):
        if a.prompt != b.prompt:
            raise ValueError(
                f"cross_votes compares sets of the same prompt, got {a.prompt!r} ({a.where}) beside "
                f"{b.prompt!r} ({b.where}); match them by prompt first (measure_sets does)"
            )
