"""The judge of a first run on your own pairs: is an answer more like the chosen one or the rejected one?"""

from __future__ import annotations

from collections import Counter
from typing import Any

LONGEST = 4
"""Characters of the longest pieces that are compared."""


def rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """Scores the candidates of one prompt.

    Args:
        prompt: the request.
        candidates: the answers.
        row: has `chosen` and `rejected`, each text or chat messages.

    Returns:
        One score in [-1, 1] for each candidate: its likeness to the chosen answer less that to the rejected one.
    """
    chosen = last_turn(row["chosen"])
    rejected = last_turn(row["rejected"])
    return [likeness(text, chosen) - likeness(text, rejected) for text in candidates]


def likeness(text: str, other: str) -> float:
    """The share of pieces of 1 to `LONGEST` characters that two texts have in common, in [0, 1]."""
    sizes = range(1, min(LONGEST, max(len(text), len(other))) + 1)
    shares = [_share(_pieces(text, size), _pieces(other, size)) for size in sizes]
    return sum(shares) / len(shares) if shares else 0.0


def last_turn(answer: Any) -> str:
    """The text of an answer that is text or chat messages."""
    return answer if isinstance(answer, str) else answer[-1]["content"]


def _pieces(text: str, size: int) -> Counter[str]:
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))


def _share(pieces: Counter[str], others: Counter[str]) -> float:
    """Twice what both have by what each has (F1)."""
    return 2 * (pieces & others).total() / (pieces.total() + others.total())
