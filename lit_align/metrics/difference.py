"""How different two candidates are: what metrics average and selectors choose by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from lit_align.metrics.embedder import Embedder
from lit_align.metrics.functional import cosine_difference, ngram_difference
from lit_align.metrics.words import words

ROUNDING = 1e-9
"""What a similarity, which is 1 - difference, may miss a limit by: 1 - (1 - 1/3) is not 1/3."""


class Difference(ABC):
    """A difference between texts: 0 for equal ones. One of one's own overrides :meth:`matrix`."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """:meth:`matrix`, checked.

        Raises:
            ValueError: it has another shape, or a number that is negative or not finite.
        """
        found = np.asarray(self.matrix(texts), dtype=np.float64)
        shape = (len(texts), len(texts))
        if found.shape != shape or not (np.isfinite(found) & (found >= 0)).all():
            got = f"an array of {found.shape}" if found.shape != shape else f"{found.tolist()}"
            raise ValueError(f"expected {type(self).__name__} to give {shape} finite numbers of at least 0, got {got}")
        return found

    @abstractmethod
    def matrix(self, texts: Sequence[str]) -> np.ndarray:
        """[K, K] float64, symmetric: how different each two of the K texts are, finite and at least 0."""


class NgramDifference(Difference):
    """1 - the n-grams of words that two texts share over all that they have (Jaccard), in [0, 1].

    Args:
        n: words an n-gram, at least 1.
    """

    def __init__(self, n: int = 2) -> None:
        if n < 1:
            raise ValueError(f"expected n to be at least 1 word, got {n}")
        self.n = n

    def matrix(self, texts: Sequence[str]) -> np.ndarray:
        return ngram_difference(texts, self.n)


class EmbeddingDifference(Difference):
    """1 - the cosine of two texts' embeddings, in [0, 2]. Texts without words are 1 from all others, 0 from each other.

    Args:
        embedder: turns texts into embeddings.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def matrix(self, texts: Sequence[str]) -> np.ndarray:
        known = np.array([bool(words(text)) for text in texts], dtype=bool)
        out = (known[:, None] != known[None, :]).astype(np.float64)
        if known.any():
            kept = [text for text, has_words in zip(texts, known, strict=True) if has_words]
            out[np.ix_(known, known)] = cosine_difference(self.embedder.embed(kept))
        return out
