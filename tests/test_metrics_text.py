"""Figures of texts against numbers derived by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from lit_align.metrics import Difference, NgramDifference, words
from lit_align.metrics.functional import (
    cosine_difference,
    distinct_n,
    mean_over_pairs,
    ngram_counts,
    ngram_difference,
    ngram_jaccard,
    self_bleu,
    spread,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't PANIC, don\u2019t: 42!", ["don\u02bct", "panic", ",", "don\u02bct", ":", "42", "!"]),
        ("'quoted' re-do a_b\n\tx  ", ["'", "quoted", "'", "re", "-", "do", "a", "_", "b", "x"]),
        ("\u65e5\u672c\u8a9e\u306etest", ["\u65e5", "\u672c", "\u8a9e", "\u306e", "test"]),  # Han and Kana
        ("\u0e20\u0e32\u0e29\u0e32", ["\u0e20", "\u0e32", "\u0e29", "\u0e32"]),  # Thai
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e", None),  # Hindi: marks stay in their words
        ("\ud55c\uad6d\uc5b4 \uc5b8\uc5b4", None),  # Korean has spaces
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", ["\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"]),  # Persian
        ("e\u0301tude \u00c9TUDE", ["\u00e9tude", "\u00e9tude"]),  # one form of an accent, one case
        ("ok\U0001f44d\ufe0f", ["ok", "\U0001f44d"]),
        (" \n\u200b", []),
        ("\ud800", []),  # half a character of a broken file
    ],
)
def test_words_of_any_language(text: str, expected: list[str] | None) -> None:
    assert list(words(text)) == (text.split() if expected is None else expected)


def test_ngram_counts_keep_a_row_for_each_text() -> None:
    counts = ngram_counts(["a b a b", "b a", "a", ""], 2)
    assert counts.tolist() == [[2, 1], [0, 1], [0, 0], [0, 0]]  # ab, ba
    assert ngram_counts([], 2).shape == (0, 0)


def test_distinct_n_by_hand() -> None:
    texts = ["a b c", "a b d e", ""]
    assert distinct_n(texts, 1) == 5 / 7
    assert distinct_n(texts, 2) == 4 / 5  # ab bc, ab bd de
    assert distinct_n(texts, 3) == 1.0  # abc, abd bde
    assert distinct_n(["a a a"] * 2, 1) == 1 / 6
    assert math.isnan(distinct_n(texts, 5)) and math.isnan(distinct_n(["a b", ""], 1)) and math.isnan(distinct_n([], 1))


def test_self_bleu_by_hand() -> None:
    # "a b c d" against "a b c e": 3/4, 2/3, 1/2, none of 1 4-gram, smoothed to 1/2; alike the other way round
    assert self_bleu(["a b c d", "a b c e"]) == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4), abs=1e-15)
    # "a b" has no trigram: its two orders match, and it is shorter than its reference by one word;
    # "a b c" has 2/3, 1/2 and one smoothed trigram
    short, long = math.exp(1 - 3 / 2), (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)
    assert self_bleu(["a b", "a b c"]) == pytest.approx((short + long) / 2, abs=1e-15)
    # a word that is said twice matches once: the clip is the most that one reference has
    assert self_bleu(["a a", "a b", "a c"], max_n=1) == pytest.approx(1 / 2)
    assert self_bleu(["a b", "c d"]) == 0.0
    assert self_bleu(["a b c d e", "a b c d e", ""]) == pytest.approx(1.0)
    assert math.isnan(self_bleu(["a b", " "])) and math.isnan(self_bleu([]))


def test_self_bleu_is_that_of_sacrebleu() -> None:
    # means of sacrebleu 2.6's BLEU(effective_order=True, tokenize="none").sentence_score(...) / 100
    cat = ["the cat sat on the mat .", "the cat sat on a mat .", "a dog ran"]
    assert self_bleu(cat) == pytest.approx(
        (0.4889230224349009 + 0.508132748154615 + 0.07253154775624654) / 3, abs=1e-15
    )
    letters = ["a b c d e", "a b c x", "a b", "y z"]
    expected = (0.39763536438352515 + 0.46307771619910265 + 1.0) / 4
    assert self_bleu(letters) == pytest.approx(expected, abs=1e-15)


def test_self_bleu_does_not_depend_on_the_order() -> None:
    texts = ["x y z", "x y", "z y x w", "x x y z z"]
    assert self_bleu(texts) == pytest.approx(self_bleu(texts[::-1]), abs=1e-15)


def test_jaccard_by_hand() -> None:
    assert ngram_jaccard("a b c d", "a b c e", 2) == 2 / 4
    assert ngram_jaccard("a b", "A  B!", 1) == 2 / 3
    assert ngram_jaccard("a", "a", 3) == 1.0 and ngram_jaccard("a", "b", 3) == 0.0  # a short text is one n-gram
    assert ngram_jaccard("", " ") == 1.0 and ngram_jaccard("", "a") == 0.0
    matrix = ngram_difference(["a b", "a b", "a c"], 1)
    assert matrix.tolist() == [[0, 0, 1 - 1 / 3], [0, 0, 1 - 1 / 3], [1 - 1 / 3, 1 - 1 / 3, 0]]
    with pytest.raises(ValueError, match="n to be at least 1 word, got 0"):
        NgramDifference(0)


@pytest.mark.parametrize("matrix", [[[0.0]], [[0.0, NAN], [NAN, 0.0]], [[0.0, -1.0], [-1.0, 0.0]], [0.0, 1.0]])
def test_a_difference_of_one_s_own_is_checked(matrix: list[object]) -> None:
    class Own(Difference):
        def matrix(self, texts: Sequence[str]) -> np.ndarray:
            return np.array(matrix)

    with pytest.raises(ValueError, match=r"expected Own to give \(2, 2\) finite numbers of at least 0, got"):
        Own()(["a", "b"])


def test_cosine_difference_by_hand() -> None:
    matrix = cosine_difference(np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]]))
    half = 1 - math.sqrt(0.5)
    expected = [[0, 1, 2, half], [1, 0, 1, half], [2, 1, 0, 2 - half], [half, half, 2 - half, 0]]
    assert matrix == pytest.approx(np.array(expected), abs=1e-15)
    assert mean_over_pairs(matrix) == pytest.approx((1 + 2 + 1 + 2 + half + half - half) / 6)
    for bad in ([0.0, 0.0], [NAN, 1.0], [float("inf"), 1.0]):
        with pytest.raises(ValueError, match="finite and not zero"):
            cosine_difference(np.array([[1.0, 0.0], bad]))


def test_spread_by_hand() -> None:
    assert spread([1.0, 4.0, None, 2.0, NAN, float("inf")]) == pytest.approx((3 + 1 + 2) / 3)
    assert spread([5.0, 5.0]) == 0.0
    assert math.isnan(spread([1.0, None])) and math.isnan(spread([]))


def test_spread_does_not_grow_with_the_number_of_candidates() -> None:
    draws = np.random.default_rng(0).normal(size=(20000, 8))
    few, many = (float(np.mean([spread(list(row[:k])) for row in draws[:4000]])) for k in (2, 8))
    assert few == pytest.approx(2 / math.sqrt(math.pi), abs=0.05) and many == pytest.approx(few, abs=0.05)
