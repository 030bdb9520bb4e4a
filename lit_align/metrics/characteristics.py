"""The two characteristics of any set of candidates: all figures at once."""

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
        embedder: for `embedding_spread`.
        kwargs: of torchmetrics, for each metric, such as `sync_on_compute`.
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
        """Counts some prompts with their candidates."""
        super().update([])  # a rank without prompts takes part in the reduction
        for one in sets:  # prompt by prompt, so that each text is split into words once
            super().update([one])

    def figures(self) -> dict[str, float]:
        """The figures as plain numbers; those that no prompt has are left out."""
        found = {name: float(value) for name, value in self.compute().items()}
        return {name: value for name, value in found.items() if not isnan(value)}


def characteristics(
    sets: Sequence[CandidateSet], embedder: Embedder | None = None, candidates: int | None = None
) -> dict[str, float]:
    """All figures of :class:`Characteristics` that these sets have, each averaged over prompts.

    Looks at these sets alone, whatever other ranks hold: in a distributed run gather the sets first, or use
    :class:`Characteristics`.

    Args:
        sets: prompts with their candidates, with scores or without.
        embedder: for `embedding_spread`.
        candidates: how many candidates of each prompt to look at, see :func:`of_equal_size`. Most figures change
            with the number of candidates, so two sides compare only at the same number. None: all.
    """
    metrics = Characteristics(embedder, sync_on_compute=False)
    metrics.update(sets if candidates is None else of_equal_size(sets, candidates))
    return metrics.figures()


def of_equal_size(sets: Sequence[CandidateSet], count: int) -> list[CandidateSet]:
    """The sets with `count` candidates each; prompts with fewer are left out.

    Which ones stay depends on the texts alone, by a hash: neither on their order, in which there may be a system,
    nor on any random state. Equal texts stay or go one by one.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"expected at least 1 candidate a prompt, got {count}")
    return [_some(one, count) for one in sets if len(one.candidates) >= count]


def _some(one: CandidateSet, count: int) -> CandidateSet:
    if len(one.candidates) == count:
        return one
    seen: dict[str, int] = {}

    def place(candidate: Candidate) -> int:
        copy = seen[candidate.text] = seen.get(candidate.text, 0) + 1
        return derive_seed(0, "of_equal_size", repr(one.prompt), repr(candidate.text), copy)

    return replace(one, candidates=tuple(sorted(one.candidates, key=place)[:count]))
