"""What every judge does: score candidates, and say who wins across two sets of the same prompt."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lit_align.records import CandidateSet, Prompt

ABSTAINED = math.nan
"""A judge that cannot say gives this, never a score of its own invention."""


class Judge(ABC):
    """A preference model that stands for the truth.

    `identity` names the judge and what its verdicts depend on, for logs and caches.
    """

    identity: str

    @abstractmethod
    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """Scores the candidates of each set against each other.

        Returns:
            One list for each set, one finite score for each candidate, higher is better; NaN where
            the judge abstained. Scores of one prompt compare; scores of two prompts need not.
        """

    @abstractmethod
    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """Compares each on-policy candidate with each off-policy candidate of the same prompt.

        Args:
            on: N sets with K_on candidates each (K may differ from set to set).
            off: N sets of the same prompts in the same order, with K_off candidates each.

        Returns:
            N arrays [K_on, K_off] float64: the probability that the on-policy candidate wins, 0.5 at a
            tie, NaN where the judge abstained.
        """


class PointwiseJudge(Judge):
    """A judge that gives each candidate a score; of two candidates the higher score wins."""

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """See :meth:`Judge.cross_votes`. Both sides of a prompt are scored together, as one set."""
        scores = self.score(side_by_side(on, off))
        counts = [len(one.candidates) for one in on]
        return [votes_from_scores(s[:n], s[n:]) for s, n in zip(scores, counts, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Two completions of a prompt, in the order in which the judge is to see them."""

    prompt: Prompt
    first: str
    second: str


class PairwiseJudge(Judge):
    """A judge that compares two completions; a subclass gives `compare` alone.

    Judges of this kind favour a position, so each pair is shown in both orders and averaged.
    """

    @abstractmethod
    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """P(first wins) in [0, 1] for each comparison; NaN where the judge abstained."""

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """The mean probability that a candidate beats the others of its set (0.5 for a lone one)."""
        blocks = self._both_orders([(s, s) for s in sets], skip_diagonal=True)
        return [_mean_of_opponents(block) for block in blocks]

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        require_same_prompts(on, off)
        return self._both_orders(list(zip(on, off, strict=True)), skip_diagonal=False)

    def _both_orders(self, pairs: Sequence[tuple[CandidateSet, CandidateSet]], skip_diagonal: bool) -> list[np.ndarray]:
        """One array [K_a, K_b] of P(a wins) for each pair of sets; one call of `compare` for all of them."""
        cells = [
            (n, i, j)
            for n, (a, b) in enumerate(pairs)
            for i in range(len(a.candidates))
            for j in range(len(b.candidates))
            if not skip_diagonal or i < j  # within one set the other half is the complement
        ]
        comparisons = []
        for n, i, j in cells:
            a, b = pairs[n]
            first, second = a.candidates[i].text, b.candidates[j].text
            comparisons += [Comparison(a.prompt, first, second), Comparison(a.prompt, second, first)]
        verdicts = self._checked(comparisons)
        blocks = [np.full((len(a.candidates), len(b.candidates)), ABSTAINED) for a, b in pairs]
        for (n, i, j), forward, backward in zip(cells, verdicts[::2], verdicts[1::2], strict=True):
            blocks[n][i, j] = (forward + 1.0 - backward) / 2
            if skip_diagonal:
                blocks[n][j, i] = 1.0 - blocks[n][i, j]
        return blocks

    def _checked(self, comparisons: list[Comparison]) -> list[float]:
        verdicts = list(self.compare(comparisons)) if comparisons else []
        if len(verdicts) != len(comparisons):
            raise ValueError(
                f"{self.identity} was asked for {len(comparisons)} comparisons and answered {len(verdicts)}; "
                "compare() must return one probability for each comparison, NaN for an abstention"
            )
        bad = [v for v in verdicts if not math.isnan(v) and not 0.0 <= v <= 1.0]
        if bad:
            raise ValueError(
                f"{self.identity} answered {bad[0]}, expected P(first wins) in [0, 1], or NaN for an abstention"
            )
        return verdicts


def votes_from_scores(on: Sequence[float], off: Sequence[float]) -> np.ndarray:
    """[K_on, K_off] float64 votes: 1 where the on-policy score is higher, 0.5 at a tie, NaN where one is NaN."""
    a, b = np.asarray(on, dtype=np.float64)[:, None], np.asarray(off, dtype=np.float64)[None, :]
    votes = 0.5 * ((a > b).astype(np.float64) + (a >= b))
    votes[np.isnan(a) | np.isnan(b)] = ABSTAINED
    return votes


def _mean_of_opponents(block: np.ndarray) -> list[float]:
    """The mean of each row's cells off the diagonal that hold a verdict; NaN where all abstained."""
    if len(block) == 1:
        return [0.5]
    known = ~np.isnan(block)
    counts = known.sum(1)
    sums = np.where(known, block, 0.0).sum(1)
    return [float(s / c) if c else ABSTAINED for s, c in zip(sums, counts, strict=True)]


def side_by_side(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[CandidateSet]:
    """One set for each prompt: its on-policy candidates, then its off-policy ones, with the static row."""
    require_same_prompts(on, off)
    return [replace(b, candidates=a.candidates + b.candidates) for a, b in zip(on, off, strict=True)]


def require_same_prompts(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> None:
    """Raises ValueError where two sets that stand beside each other are not of one prompt."""
    if len(on) != len(off):
        raise ValueError(f"cross_votes needs as many on-policy as off-policy sets, got {len(on)} and {len(off)}")
    for a, b in zip(on, off, strict=True):
        if a.prompt != b.prompt:
            raise ValueError(
                f"cross_votes compares sets of the same prompt, got {a.prompt!r} ({a.where}) beside "
                f"{b.prompt!r} ({b.where}); match them by prompt first (measure_sets does)"
            )
