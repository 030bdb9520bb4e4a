"""Figures of the candidates of one prompt, as pure functions. NaN if a figure is not defined.

Notation: a prompt has K candidates; words are those of :func:`lit_align.metrics.words.words`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from lit_align.metrics.words import words

UNDEFINED = math.nan


def ngram_counts(texts: Sequence[str], n: int) -> np.ndarray:
    """Counts in each text each of the U word n-grams that occur in any text: [K, U] int64."""
    columns: dict[tuple[str, ...], int] = {}
    rows: list[list[int]] = []
    for text in texts:
        rows.append([columns.setdefault(ngram, len(columns)) for ngram in _ngrams(words(text), n)])
    counts = [np.bincount(np.asarray(row, dtype=np.int64), minlength=len(columns)) for row in rows]
    return np.stack(counts) if counts else np.zeros((0, 0), dtype=np.int64)


def _ngrams(tokens: Sequence[str], n: int) -> zip[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Divides the distinct n-grams of all texts together by all their n-grams: (0, 1] (arXiv 1510.03055).

    The paper divides by all words; here a text that repeats nothing has 1 for each n. NaN if fewer than two texts
    have words, or none has an n-gram.
    """
    texts = _with_words(texts)
    counts = ngram_counts(texts, n)
    if len(texts) < 2 or counts.size == 0:
        return UNDEFINED
    return counts.shape[1] / int(counts.sum())


def self_bleu(texts: Sequence[str], max_n: int = 4) -> float:
    """Averages the BLEU of each text against all others as its references: [0, 1] (arXiv 1802.01886).

    Sentence BLEU as in sacrebleu: clipped precisions of 1 to `max_n` words, an order without any match smoothed
    to 1 / (2^i total) at the i-th such order, orders longer than the text left out, brevity against the reference
    of the nearest length. NaN if fewer than two texts have words.
    """
    texts = _with_words(texts)
    if len(texts) < 2:
        return UNDEFINED
    matched = np.zeros((len(texts), max_n), dtype=np.int64)
    total = np.zeros_like(matched)
    for n in range(1, max_n + 1):
        counts = ngram_counts(texts, n)
        matched[:, n - 1] = np.minimum(counts, _largest_count_elsewhere(counts)).sum(1)
        total[:, n - 1] = counts.sum(1)
    lengths = [len(words(text)) for text in texts]
    return _mean([_bleu(matched[i], total[i], lengths, i) for i in range(len(texts))])


def _largest_count_elsewhere(counts: np.ndarray) -> np.ndarray:
    """[K, U]: the largest count of each n-gram among the other texts."""
    if counts.size == 0:
        return counts
    # for all texts but the one that has the largest count this is that count; for that text it is the second largest
    largest = counts.argmax(0)
    second = np.partition(counts, -2, axis=0)[-2]
    return np.where(np.arange(len(counts))[:, None] == largest, second, counts.max(0))


def _bleu(matched: np.ndarray, total: np.ndarray, lengths: Sequence[int], text: int) -> float:
    """BLEU of the text with the index `text` from its matches and totals, each [max_n]."""
    orders = int((total > 0).sum())  # a text of two words has no trigrams
    if not matched.any():
        return 0.0
    length = lengths[text]
    others = [other for i, other in enumerate(lengths) if i != text]
    reference = min(others, key=lambda other: (abs(other - length), other))
    unmatched_orders = 0
    log_precisions = 0.0
    for hits, ngrams in zip(matched[:orders], total[:orders], strict=True):
        unmatched_orders += hits == 0
        log_precisions += math.log(hits / ngrams if hits else 1 / (2**unmatched_orders * ngrams))
    return math.exp(min(0.0, 1 - reference / length) + log_precisions / orders)


def ngram_jaccard(a: str, b: str, n: int = 2) -> float:
    """Divides the word n-grams that both texts share by those that either has, each counted once: [0, 1].

    A text of fewer than n words is one n-gram. Two texts without words are the same: 1.
    """
    return _jaccard(_shingles(a, n), _shingles(b, n))


def ngram_difference(texts: Sequence[str], n: int = 2) -> np.ndarray:
    """Computes 1 - :func:`ngram_jaccard` of each two texts: [K, K] float64."""
    shingles = [_shingles(text, n) for text in texts]
    difference = np.zeros((len(texts), len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        difference[i, j] = difference[j, i] = 1 - _jaccard(shingles[i], shingles[j])
    return difference


def _shingles(text: str, n: int) -> set[tuple[str, ...]]:
    tokens = words(text)
    return set(_ngrams(tokens, n)) if len(tokens) >= n else {tokens}


def _jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def cosine_difference(embeddings: np.ndarray) -> np.ndarray:
    """Computes 1 - cosine of each two rows of [K, D]: [K, K] float64, in [0, 2].

    Raises:
        ValueError: an embedding is zero or not finite.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("expected embeddings that are finite and not zero, got one that has no direction")
    unit = rows / norms
    difference = np.clip(1 - unit @ unit.T, 0.0, 2.0)
    np.fill_diagonal(difference, 0.0)
    return difference


def mean_over_pairs(matrix: np.ndarray) -> float:
    """Averages a symmetric [K, K] matrix over the pairs of different candidates; NaN if K < 2."""
    above = matrix[np.triu_indices(len(matrix), 1)]
    return float(above.mean()) if above.size else UNDEFINED


def spread(values: Sequence[float | None]) -> float:
    """Averages the absolute difference of each two values, without those that are None or not finite.

    Unlike a range, its expectation does not depend on the number of values. NaN if fewer than two remain.
    """
    ascending = np.sort(np.asarray(finite(values), dtype=np.float64))
    count = len(ascending)
    if count < 2:
        return UNDEFINED
    # sum of differences of a sorted list: value i stands above i others and below count - 1 - i
    weights = 2 * np.arange(count) - (count - 1)
    return float((weights * ascending).sum() / (count * (count - 1) / 2))


def finite(values: Sequence[float | None]) -> list[float]:
    """Keeps the values that are numbers: neither None nor NaN nor infinite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else UNDEFINED


def mean_of(values: Sequence[float | None]) -> float:
    """Averages the values that are numbers; NaN if there is none."""
    return _mean(finite(values))


def _with_words(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if words(text)]
