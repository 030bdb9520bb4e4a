from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import jsonargparse
import numpy as np
import pytest

from lit_align.data import (
    AllAboveMargin,
    BestRandom,
    BestWorst,
    Filtered,
    MostDifferent,
    PairSelector,
    QualityDiversity,
)
from lit_align.metrics import Difference, EmbeddingDifference, NgramDifference
from lit_align.records import Candidate, CandidateSet, Message

NAN = float("nan")


def scored(*scores: float | None, texts: str = "abcdefgh", row: dict[str, object] | None = None) -> CandidateSet:
    candidates = tuple(Candidate(text, score) for text, score in zip(texts, scores, strict=False))
    return CandidateSet((Message("user", "q"),), candidates, row or {}, "f, row 1")


def select(selector: PairSelector, one: CandidateSet, seed: int = 0) -> tuple[list[tuple[str, str]], dict[str, int]]:
    counts: Counter[str] = Counter()
    pairs = selector.select(one, seed, counts)
    for pair in pairs:
        assert pair.chosen.score is not None and pair.rejected.score is not None
        assert pair.margin == pair.chosen.score - pair.rejected.score > 0
    return [(p.chosen.text, p.rejected.text) for p in pairs], {key: n for key, n in counts.items() if n}


def test_best_against_worst() -> None:
    assert select(BestWorst(), scored(0.2, 0.9, 0.1, 0.5)) == ([("b", "c")], {})
    assert select(BestWorst(), scored(1.0, 1.0, 1.0)) == ([], {"ties": 1})


def test_best_against_random_draws_each_lower_one_and_by_seed() -> None:
    one = scored(0.9, 0.1, 0.9, 0.2, 0.3)
    drawn = {select(BestRandom(), one, seed)[0][0] for seed in range(40)}
    assert drawn == {("a", "b"), ("a", "d"), ("a", "e")}
    assert select(BestRandom(), one, 7) == select(BestRandom(), one, 7)
    assert select(BestRandom(), scored(0.5, 0.5)) == ([], {"ties": 1})


def test_all_above_a_margin() -> None:
    pairs, counts = select(AllAboveMargin(0.25), scored(1.0, 0.75, 0.5, 0.5))
    assert pairs == [("a", "c"), ("a", "d")]  # a-b, b-c and b-d differ by just the margin
    assert counts == {"below_margin": 3, "ties": 1}
    with pytest.raises(ValueError, match="at least 0, got -1"):
        AllAboveMargin(-1)


def test_duplicates_are_dropped_and_counted() -> None:
    assert select(BestWorst(), scored(0.2, 0.9, 0.2, texts="aba")) == ([("b", "a")], {"duplicates": 1})
    assert select(BestWorst(), scored(0.2, 0.9, texts="aa")) == ([], {"duplicates": 1, "single_candidate": 1})


def test_candidates_without_a_finite_score_are_left_out_and_counted() -> None:
    pairs, counts = select(BestWorst(), scored(NAN, 0.1, None, 0.2, float("inf")))
    assert pairs == [("d", "b")] and counts == {"abstentions": 3}
    assert select(BestWorst(), scored(NAN, 0.1)) == ([], {"abstentions": 1, "single_candidate": 1})


def test_the_rows_target_and_place_go_along() -> None:
    (pair,) = BestWorst().select(scored(1.0, 0.0, row={"target": "t"}), 0, Counter())
    assert (pair.target, pair.where, pair.row) == ("t", "f, row 1", {"target": "t"})


# -- by difference, and by both


class Apart(Difference):
    """One-letter texts: as far apart as their places in the alphabet."""

    def matrix(self, texts: Sequence[str]) -> np.ndarray:
        places = np.array([ord(text) for text in texts], dtype=np.float64)
        return np.abs(places[:, None] - places[None, :])


def worded(*answers: tuple[str, float]) -> CandidateSet:
    return CandidateSet((Message("user", "q"),), tuple(Candidate(text, score) for text, score in answers))


def test_the_two_most_different_of_different_score() -> None:
    one = worded(("tea is a drink", 0.9), ("tea is a hot drink", 0.1), ("bees make honey", 0.5), ("ants dig deep", 0.5))
    pairs, counts = select(MostDifferent(), one)
    # bees and ants differ as much, but score alike; of the pairs that differ by 1 the largest margin is chosen
    assert counts == {} and pairs == [("tea is a drink", "bees make honey")]
    assert select(BestWorst(), one)[0] == [("tea is a drink", "tea is a hot drink")]
    assert select(MostDifferent(), scored(0.5, 0.5, 0.5)) == ([], {"ties": 1})
    assert select(MostDifferent(Apart()), scored(0.1, 0.2, 0.4, 0.3)) == ([("d", "a")], {})


def test_a_weight_between_quality_and_diversity() -> None:
    # margin and difference: ab 1.0, 1; ac 0.2, 2; ad 0.8, 3; cb 0.8, 1; cd 0.6, 1; db 0.2, 2. Only ab and ad can win:
    # in shares of the extremes they have 1.0, 0.0 and 0.8, 1.0.
    one = scored(1.0, 0.0, 0.8, 0.2)
    assert select(QualityDiversity(1.0, Apart()), one)[0] == [("a", "b")]
    assert select(QualityDiversity(0.0, Apart()), one)[0] == [("a", "d")]
    assert select(QualityDiversity(0.85, Apart()), one)[0] == [("a", "b")]  # .85 against .85 * .8 + .15 = .83
    assert select(QualityDiversity(0.80, Apart()), one)[0] == [("a", "d")]  # .80 against .80 * .8 + .20 = .84


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_weight_is_free_of_the_judge_s_unit_and_agrees_with_the_formula(weight: float) -> None:
    draw = np.random.default_rng(3)
    for _ in range(40):
        scores = draw.permutation(8)[:5].astype(float)
        one, scaled = scored(*scores), scored(*(1000 * scores - 77))
        found = select(QualityDiversity(weight, Apart()), one)
        assert found == select(QualityDiversity(weight, Apart()), scaled)
        indices = list(combinations(range(5), 2))
        margins = np.array([abs(scores[i] - scores[j]) for i, j in indices])
        apart = np.array([j - i for i, j in indices], dtype=float)
        sums = weight * margins / margins.max() + (1 - weight) * (apart - 1) / 3
        best = {frozenset(indices[at]) for at in np.flatnonzero(sums > sums.max() - 1e-9)}
        assert frozenset("abcde".index(text) for text in found[0][0]) in best


def test_the_extremes_of_the_weight_are_the_other_selectors() -> None:
    draw = np.random.default_rng(4)
    for _ in range(20):
        one = scored(*draw.normal(size=6))
        assert select(QualityDiversity(1.0), one) == select(BestWorst(), one)
        assert select(QualityDiversity(0.0, Apart()), one) == select(MostDifferent(Apart()), one)
    with pytest.raises(ValueError, match=r"weight in \[0, 1\], got 1.5"):
        QualityDiversity(1.5)


def test_equal_sums_go_to_the_larger_margin_then_to_the_larger_difference() -> None:
    one = scored(0.9, 0.3, 0.1, 0.5)  # no two letters share a bigram: all differ by 1
    assert select(MostDifferent(), one)[0] == [("a", "c")]
    assert select(QualityDiversity(1.0, Apart()), scored(1.0, 0.0, 0.0))[0] == [("a", "c")]


# -- filters


def test_a_small_margin_and_near_duplicates_are_filtered_and_counted() -> None:
    close = worded(("a b c d", 0.9), ("a b c e", 0.1))  # two of four bigrams
    assert select(Filtered(max_similarity=0.5), close)[0] == [("a b c d", "a b c e")]
    assert select(Filtered(max_similarity=0.49), close) == ([], {"too_similar": 1})
    assert select(Filtered(max_similarity=0.5, difference=NgramDifference(1)), close) == ([], {"too_similar": 1})
    assert select(Filtered(min_margin=0.8), close)[1] == {}
    assert select(Filtered(min_margin=0.81), close) == ([], {"below_margin": 1})
    assert select(Filtered(), close) == select(BestWorst(), close)


def test_a_filter_around_each_selector_keeps_its_counts() -> None:
    one = scored(1.0, 0.75, 0.5, 0.5)
    assert select(Filtered(AllAboveMargin(0.0), min_margin=0.3), one) == (
        [("a", "c"), ("a", "d")],
        {"below_margin": 3, "ties": 1},
    )
    assert select(Filtered(Filtered(MostDifferent(Apart()), min_margin=0.1), min_margin=0.2), one)[0] == [("a", "d")]
    assert select(Filtered(BestRandom()), scored(0.5, 0.5)) == ([], {"ties": 1})
    refused: list[dict[str, Any]] = [{"min_margin": -1.0}, {"max_similarity": 1.1}, {"min_margin": float("nan")}]
    for bad in refused:
        with pytest.raises(ValueError, match="expected m"):
            Filtered(**bad)


def test_selectors_come_from_a_config() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--selector", type=PairSelector)
    given = """
selector:
  class_path: lit_align.data.Filtered
  init_args:
    selector:
      class_path: lit_align.data.QualityDiversity
      init_args:
        weight: 0.3
        difference:
          class_path: lit_align.metrics.EmbeddingDifference
          init_args:
            embedder: {class_path: lit_align.metrics.TransformersEmbedder, init_args: {model: some/encoder}}
    min_margin: 0.1
    max_similarity: 0.8
"""
    selector = parser.instantiate(parser.parse_string(given)).selector
    assert isinstance(selector, Filtered) and selector.max_similarity == 0.8
    assert isinstance(selector.selector, QualityDiversity) and selector.selector.weight == 0.3
    assert isinstance(selector.selector.difference, EmbeddingDifference)
