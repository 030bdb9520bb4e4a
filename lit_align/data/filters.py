"""Filters of pairs, around a selector."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from lit_align.data.selection import BestWorst, PairSelector, ScoredPair
from lit_align.metrics import Difference, NgramDifference
from lit_align.metrics.difference import ROUNDING
from lit_align.records import Candidate


class Filtered(PairSelector):
    """The pairs of another selector, without those whose margin is small or whose texts are nearly the same.

    Dropped pairs are counted as `below_margin` and `too_similar`. The other selector does not choose anew.

    Args:
        selector: chooses the pairs, by default best against worst.
        min_margin: smallest difference of the two scores, in the judge's units, at least 0.
        max_similarity: largest 1 - difference of the two texts, in [0, 1]; 1 keeps all.
        difference: of two texts, by default 1 - the word bigrams they share.
    """

    def __init__(
        self,
        selector: PairSelector | None = None,
        min_margin: float = 0.0,
        max_similarity: float = 1.0,
        difference: Difference | None = None,
    ) -> None:
        if not min_margin >= 0:
            raise ValueError(f"expected min_margin to be at least 0, got {min_margin}")
        if not 0 <= max_similarity <= 1:
            raise ValueError(f"expected max_similarity in [0, 1], got {max_similarity}")
        self.selector = selector if selector is not None else BestWorst()
        self.min_margin = min_margin
        self.max_similarity = max_similarity
        self.difference = difference if difference is not None else NgramDifference()

    def choose(self, ranked: Sequence[Candidate], rng: random.Random, counts: Counter[str]) -> list[ScoredPair]:
        kept = []
        for chosen, rejected in self.selector.choose(ranked, rng, counts):
            reason = self._reason(chosen, rejected)
            if reason:
                counts[reason] += 1
            else:
                kept.append((chosen, rejected))
        return kept

    def _reason(self, chosen: Candidate, rejected: Candidate) -> str:
        """Why a pair is dropped; empty if it is kept."""
        assert chosen.score is not None and rejected.score is not None
        if chosen.score - rejected.score < self.min_margin:
            return "below_margin"
        least = 1 - self.max_similarity
        if least > 0 and self.difference([chosen.text, rejected.text])[0, 1] < least - ROUNDING:
            return "too_similar"
        return ""
