from __future__ import annotations

from collections import Counter

import pytest

from lit_align.data import AllAboveMargin, BestRandom, BestWorst, PairSelector
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
