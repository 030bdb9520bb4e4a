"""Candidate sets in a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.records import Candidate, CandidateSet, Message


def make_set(
    prompt: str,
    *texts: str,
    scores: Sequence[float | None] = (),
    row: dict[str, Any] | None = None,
    role: str = "user",
) -> CandidateSet:
    all_scores = list(scores) or [None] * len(texts)
    candidates = tuple(Candidate(text, score=score) for text, score in zip(texts, all_scores, strict=True))
    return CandidateSet((Message(role, prompt),), candidates, row=row or {}, where=f"{prompt}.jsonl:1")
