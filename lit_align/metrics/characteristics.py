"""Diversity and quality of any candidates: all figures at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from typing import Any

from torchmetrics import Metric, MetricCollection

from lit_align.metrics.difference import EmbeddingDifference
from lit_align.metrics.diversity import DistinctN, Duplicates, MeanDifference, NearDuplicates, SelfBLEU
from lit_align.metrics.embedder import Embedder
from lit_align.metrics.length import CandidateCount, EmptyShare, LengthSpread, MeanLength
from lit_align.metrics.quality import BestScore, MeanScore, ScoreSpread
from lit_align.records import Candidate, CandidateSet
from lit_align.seeding import derive_seed


class Characteristics(MetricCollection):
    """Diversity, quality and length of candidates, each averaged over prompts (arXiv 2508.10530).

    Keys: `candidates`, `distinct_1`, `distinct_2`, `distinct_3`, `self_bleu`, `ngram_difference`,
    `embedding_spread` (with an embedder), `near_duplicates`, `duplicates`, `score_mean`, `score_best`,
    `score_spread`, `length_mean` and `length_spread` (words), `length_characters`, `length_tokens`, `empty`.

    In a distributed run each rank passes its share of the prompts and all get the same figures.

    Args:
        embedder: gives the embeddings of `embedding_spread`; None leaves that figure out.
        kwargs: arguments of each `torchmetrics.Metric`, such as `sync_on_compute`.
    """

    def __init__(self, embedder: Embedder | None = None, **kwargs: Any) -> None:
        metrics: dict[str, Metric] = {
            "candidates": CandidateCount(**kwargs),
            **{f"distinct_{n}": DistinctN(n, **kwargs) for n in (1, 2, 3)},
            "self_bleu": SelfBLEU(**kwargs),
            "ngram_difference": MeanDifference(**kwargs),
            "near_duplicates": NearDuplicates(**kwargs),
            "duplicates": Duplicates(**kwargs),
            "score_mean": MeanScore(**kwargs),
            "score_best": BestScore(**kwargs),
            "score_spread": ScoreSpread(**kwargs),
            "length_mean": MeanLength(**kwargs),
            "length_spread": LengthSpread(**kwargs),
            "length_characters": MeanLength("characters", **kwargs),
            "length_tokens": MeanLength("tokens", **kwargs),
            "empty": EmptyShare(**kwargs),
        }
        if embedder is not None:
            metrics["embedding_spread"] = MeanDifference(EmbeddingDifference(embedder), **kwargs)
        super().__init__(metrics, compute_groups=False)  # type: ignore[arg-type]

    def update(self, sets: Sequence[CandidateSet]) -> None:  # type: ignore[override]
        """Counts prompts with their candidates."""
        super().update([])  # a rank without prompts takes part in the reduction
        for candidate_set in sets:  # prompt by prompt, so that each text is split into words once
            super().update([candidate_set])

    def figures(self) -> dict[str, float]:
        """The figures as plain numbers; those that no prompt has are left out."""
        values = {name: float(value) for name, value in self.compute().items()}
        return {name: value for name, value in values.items() if not isnan(value)}


def characteristics(
    sets: Sequence[CandidateSet], embedder: Embedder | None = None, candidates: int | None = None
) -> dict[str, float]:
    """All figures of :class:`Characteristics` that these sets have, each averaged over prompts.

    Only these sets count, not those of other ranks: in a distributed run gather the sets first, or use
    :class:`Characteristics`.

    Args:
        sets: prompts with their candidates; scores are optional.
        embedder: gives the embeddings of `embedding_spread`; None leaves that figure out.
        candidates: how many candidates of each prompt to use, see :func:`of_equal_size`; None uses all. Most
            figures change with the number of candidates, so compare two sides at the same number.
    """
    metrics = Characteristics(embedder, sync_on_compute=False)
    metrics.update(sets if candidates is None else of_equal_size(sets, candidates))
    return metrics.figures()


def of_equal_size(sets: Sequence[CandidateSet], count: int) -> list[CandidateSet]:
    """The sets with `count` candidates each; prompts with fewer are left out.

    A hash of the texts decides which candidates stay, not their order (which may follow a pattern) or any random
    state. Of equal texts each copy is chosen by itself.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"expected at least 1 candidate a prompt, got {count}")
    return [_choose(candidate_set, count) for candidate_set in sets if len(candidate_set.candidates) >= count]


def _choose(candidate_set: CandidateSet, count: int) -> CandidateSet:
    if len(candidate_set.candidates) == count:
        return candidate_set
    copies: dict[str, int] = {}

    def hash_of(candidate: Candidate) -> int:
        copy = copies[candidate.text] = copies.get(candidate.text, 0) + 1
        return derive_seed(0, "of_equal_size", repr(candidate_set.prompt), repr(candidate.text), copy)

    return replace(candidate_set, candidates=tuple(sorted(candidate_set.candidates, key=hash_of)[:count]))
