"""Figures of any set of candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_align.records import CandidateSet


def characteristics(sets: Sequence[CandidateSet]) -> dict[str, float]:
    """The mean score of the candidates that have one."""
    scores = [c.score for one in sets for c in one.candidates if c.score is not None and math.isfinite(c.score)]
    return {"score_mean": math.fsum(scores) / len(scores)} if scores else {}
