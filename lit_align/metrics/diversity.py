"""Diversity within the candidates of a prompt, as metrics."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from lit_align.metrics.base import CandidateMetric
from lit_align.metrics.difference import ROUNDING, Difference, NgramDifference
from lit_align.metrics.functional import UNDEFINED, distinct_n, mean_over_pairs, self_bleu
from lit_align.metrics.words import words
from lit_align.records import CandidateSet


class DistinctN(CandidateMetric):
    """Distinct n-grams over all n-grams of a prompt's candidates taken together, averaged over prompts.

    In (0, 1]; more is more diverse. It falls as candidates get longer or more numerous: compare sets that
    are alike in both. Li et al. 2016, arXiv 1510.03055. Candidates without words are left out; a prompt with fewer
    than two remaining, or without any n-gram, is not counted.

    Args:
        n: words per n-gram, at least 1.
        kwargs: arguments of `torchmetrics.Metric`.

    Example:
        >>> from lit_align.records import Candidate
        >>> metric = DistinctN(2)
        >>> metric.update([CandidateSet((), (Candidate("a b c"), Candidate("a b d")))])
        >>> round(float(metric.compute()), 2)  # ab, bc, bd of four
        0.75
    """

    higher_is_better = True

    def __init__(self, n: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n < 1:
            raise ValueError(f"expected n to be at least 1 word, got {n}")
        self.n = n

    def figure(self, candidate_set: CandidateSet) -> float:
        return distinct_n(_texts(candidate_set), self.n)


class SelfBLEU(CandidateMetric):
    """BLEU of each candidate against the other candidates of its prompt, averaged over candidates, then prompts.

    In [0, 1]; less is more diverse. It rises with the number of candidates. Zhu et al. 2018, arXiv 1802.01886; the
    BLEU of one candidate is sacrebleu's sentence BLEU, see :func:`~lit_align.metrics.functional.self_bleu`.
    Candidates without words are left out; a prompt with fewer than two remaining is not counted.

    Args:
        max_n: the longest n-grams, in words, at least 1.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better = False

    def __init__(self, max_n: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_n < 1:
            raise ValueError(f"expected max_n to be at least 1 word, got {max_n}")
        self.max_n = max_n

    def figure(self, candidate_set: CandidateSet) -> float:
        return self_bleu(_texts(candidate_set), self.max_n)


class MeanDifference(CandidateMetric):
    """The mean difference of each two candidates of a prompt, averaged over prompts.

    With :class:`~lit_align.metrics.EmbeddingDifference` this is the spread of the embeddings. Being a mean over
    pairs, it does not depend on how many candidates there are. Candidates without words are left out; a prompt with
    fewer than two remaining is not counted.

    Args:
        difference: how different two texts are; None takes 1 - Jaccard of their word bigrams.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, difference: Difference | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.difference = difference or NgramDifference()

    def figure(self, candidate_set: CandidateSet) -> float:
        texts = [text for text in _texts(candidate_set) if words(text)]
        return mean_over_pairs(self.difference(texts)) if len(texts) > 1 else UNDEFINED


class NearDuplicates(CandidateMetric):
    """The share of pairs of candidates of a prompt that are nearly the same, averaged over prompts.

    In [0, 1]. A pair is nearly the same if 1 - difference is at least `threshold`. Exact duplicates count, also two
    texts without words. A prompt with one candidate is not counted.

    Args:
        threshold: the smallest similarity at which two candidates are nearly the same, in (0, 1].
        difference: how different two texts are; None takes 1 - Jaccard of their word bigrams.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better = False

    def __init__(self, threshold: float = 0.7, difference: Difference | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < threshold <= 1:
            raise ValueError(f"expected threshold in (0, 1], got {threshold}")
        self.threshold = threshold
        self.difference = difference or NgramDifference()

    def figure(self, candidate_set: CandidateSet) -> float:
        similar = self.difference(_texts(candidate_set)) <= 1 - self.threshold + ROUNDING
        return mean_over_pairs(similar.astype(np.float64))


class Duplicates(CandidateMetric):
    """The share of pairs of candidates of a prompt whose texts are equal to the letter, averaged over prompts.

    In [0, 1]. A prompt with one candidate is not counted.
    """

    higher_is_better = False

    def figure(self, candidate_set: CandidateSet) -> float:
        equal = [float(a.text == b.text) for a, b in combinations(candidate_set.candidates, 2)]
        return sum(equal) / len(equal) if equal else UNDEFINED


def _texts(candidate_set: CandidateSet) -> list[str]:
    return [candidate.text for candidate in candidate_set.candidates]
