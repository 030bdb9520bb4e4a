"""Pairs from the scored candidates of a prompt."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from lit_align.metrics import Difference, NgramDifference
from lit_align.records import Candidate, CandidateSet, PreferencePair

ScoredPair = tuple[Candidate, Candidate]


class PairSelector(ABC):
    """Chooses pairs among the candidates of a prompt. A selector of one's own overrides :meth:`choose`."""

    def select(self, scored: CandidateSet, seed: int, counts: Counter[str]) -> list[PreferencePair]:
        """The pairs of one prompt.

        Args:
            scored: a prompt with scored candidates. A candidate whose score is None or not finite is left out.
            seed: the seed of a random choice.
            counts: `abstentions` (candidates without a score), `duplicates` (candidates whose text another one
                has), `single_candidate` (prompts with fewer than two candidates left) and what :meth:`choose`
                counts are added here.
        """
        judged = [c for c in scored.candidates if c.score is not None and math.isfinite(c.score)]
        distinct = list({(c.text, c.turn): c for c in reversed(judged)}.values())[::-1]
        counts["abstentions"] += len(scored.candidates) - len(judged)
        counts["duplicates"] += len(judged) - len(distinct)
        if len(distinct) < 2:
            counts["single_candidate"] += 1
            return []
        ranked = sorted(distinct, key=lambda candidate: -_score(candidate))
        target = scored.row.get("target")
        return [
            PreferencePair(
                prompt=scored.prompt,
                chosen=chosen,
                rejected=rejected,
                margin=_score(chosen) - _score(rejected),
                target=target if isinstance(target, str) else None,
                row=scored.row,
                where=scored.where,
            )
            for chosen, rejected in self.choose(ranked, random.Random(seed), counts)
        ]

    @abstractmethod
    def choose(self, ranked: Sequence[Candidate], rng: random.Random, counts: Counter[str]) -> list[ScoredPair]:
        """(chosen, rejected) pairs.

        Args:
            ranked: at least two distinct candidates, best first, all with finite scores.
            rng: for a random choice.
            counts: add to `ties` where equal scores cost a pair.
        """


class BestWorst(PairSelector):
    """The best candidate against the worst (the paper's choice). All scores equal: a tie, no pair."""

    def choose(self, ranked: Sequence[Candidate], rng: random.Random, counts: Counter[str]) -> list[ScoredPair]:
        best = ranked[0]
        worst = ranked[-1]
        if _score(best) == _score(worst):
            counts["ties"] += 1
            return []
        return [(best, worst)]


class BestRandom(PairSelector):
    """The best candidate against a random one that scores lower. None lower: a tie, no pair."""

    def choose(self, ranked: Sequence[Candidate], rng: random.Random, counts: Counter[str]) -> list[ScoredPair]:
        best = ranked[0]
        lower = [candidate for candidate in ranked[1:] if _score(candidate) < _score(best)]
        if not lower:
            counts["ties"] += 1
            return []
        return [(best, rng.choice(lower))]


class AllAboveMargin(PairSelector):
    """Each two candidates whose scores differ by more than `margin`. Equal scores count as ties.

    Args:
        margin: in the judge's units, at least 0. Pairs at or below it are counted as `below_margin`.
    """

    def __init__(self, margin: float = 0.0) -> None:
        if not margin >= 0:
            raise ValueError(f"expected margin to be at least 0, got {margin}")
        self.margin = margin

    def choose(self, ranked: Sequence[Candidate], rng: random.Random, counts: Counter[str]) -> list[ScoredPair]:
        pairs = []
        for better, worse in combinations(ranked, 2):
            difference = _score(better) - _score(worse)
            if difference > self.margin:
                pairs.append((better, worse))
            else:
                counts["ties" if difference == 0 else "below_margin"] += 1
        return pairs


class QualityDiversity(PairSelector):
    """The pair that is best by quality and diversity together.

    Of all pairs of different score the one with the largest

        weight * margin / (largest margin) + (1 - weight) * (difference - smallest) / (largest - smallest)

    where the extremes are those of the prompt's pairs, so that neither the judge's unit nor the usual size of a
    difference matters. Where all differences are equal only the margin counts. Equal sums: the larger margin, then
    the larger difference, then the better chosen candidate. All scores equal: a tie, no pair.

    Args:
        weight: of quality, in [0, 1]: 1 takes the largest margin (best against worst), 0 the largest difference.
        difference: of two texts, by default 1 - the word bigrams they share.
    """

    def __init__(self, weight: float = 0.5, difference: Difference | None = None) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"expected weight in [0, 1], got {weight}")
        self.weight = weight
        self.difference = difference if difference is not None else NgramDifference()

    def choose(self, ranked: Sequence[Candidate], rng: random.Random, counts: Counter[str]) -> list[ScoredPair]:
        indices = [(i, j) for i, j in combinations(range(len(ranked)), 2) if _score(ranked[i]) > _score(ranked[j])]
        if not indices:
            counts["ties"] += 1
            return []
        matrix = self.difference([candidate.text for candidate in ranked])
        margins = [_score(ranked[i]) - _score(ranked[j]) for i, j in indices]
        differences = [float(matrix[i, j]) for i, j in indices]
        smallest = min(differences)
        width = max(differences) - smallest
        largest_margin = max(margins)
        sums = []
        for margin, difference in zip(margins, differences, strict=True):
            diversity = (difference - smallest) / width if width else 0.0
            sums.append(self.weight * margin / largest_margin + (1 - self.weight) * diversity)
        best = max(range(len(indices)), key=lambda pair: (sums[pair], margins[pair], differences[pair]))
        i, j = indices[best]
        return [(ranked[i], ranked[j])]


class MostDifferent(QualityDiversity):
    """The two most different candidates of different score; the higher score is chosen. All equal: a tie, no pair.

    Args:
        difference: of two texts, by default 1 - the word bigrams they share.
    """

    def __init__(self, difference: Difference | None = None) -> None:
        super().__init__(0.0, difference)


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None
    return candidate.score
