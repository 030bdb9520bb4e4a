"""How different two texts are. Metrics average these differences; selectors choose pairs by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from lit_align.metrics.embedder import Embedder
from lit_align.metrics.functional import cosine_difference, ngram_difference
from lit_align.metrics.words import words

ROUNDING = 1e-9
"""Tolerance when a similarity, 1 - difference, is held against a limit: 1 - (1 - 1/3) is not exactly 1/3."""


class Difference(ABC):
    """A difference between texts, 0 for equal texts. Subclass it and define :meth:`matrix`."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Computes :meth:`matrix` and checks it.

        Raises:
            ValueError: the matrix has the wrong shape, or a number in it is negative or not finite.
        """
        matrix = np.asarray(self.matrix(texts), dtype=np.float64)
        shape = (len(texts), len(texts))
        if matrix.shape != shape or not (np.isfinite(matrix) & (matrix >= 0)).all():
            got = f"an array of {matrix.shape}" if matrix.shape != shape else f"{matrix.tolist()}"
            raise ValueError(f"expected {type(self).__name__} to give {shape} finite numbers of at least 0, got {got}")
        return matrix

    @abstractmethod
    def matrix(self, texts: Sequence[str]) -> np.ndarray:
        """Computes how different each two of the K texts are: [K, K] float64, symmetric, finite, at least 0."""


class NgramDifference(Difference):
    """1 - Jaccard similarity of two texts' sets of word n-grams, in [0, 1].

    Args:
        n: words per n-gram, at least 1.
    """

    def __init__(self, n: int = 2) -> None:
        if n < 1:
            raise ValueError(f"expected n to be at least 1 word, got {n}")
        self.n = n

    def matrix(self, texts: Sequence[str]) -> np.ndarray:
        return ngram_difference(texts, self.n)


class EmbeddingDifference(Difference):
    """1 - the cosine of two texts' embeddings, in [0, 2]. Texts without words: 1 to others, 0 to each other.

    Args:
        embedder: turns texts into embeddings.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def matrix(self, texts: Sequence[str]) -> np.ndarray:
        has_words = np.array([bool(words(text)) for text in texts], dtype=bool)
        matrix = (has_words[:, None] != has_words[None, :]).astype(np.float64)
        if has_words.any():
            embeddings = self.embedder.embed([text for text in texts if words(text)])
            matrix[np.ix_(has_words, has_words)] = cosine_difference(embeddings)
        return matrix
