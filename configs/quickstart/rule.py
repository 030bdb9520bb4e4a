"""The judge of the quickstart: a rule that grades an answer to a request with one checkable constraint.

A yes/no rule would leave most answers tied and could be met by nonsense. This one is a sum of parts, weighted by
how much the answer reads like a sentence:

    score = sense * (1.0 * constraint met + 0.3 * names its topic + 0.2 * ends as a sentence)   in [0, 1.5]

`sense` in [0, 1] falls with made-up words (those not in words.txt), with words said again and with answers of fewer
than eight words, so that "Well well well" or "beehomesweet" earn next to nothing.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

CONSTRAINTS = ("lower_case", "begins_with_well", "question")
ENOUGH = 8
"""Words from which on an answer is long enough to say something."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """Scores the candidates of one prompt.

    Args:
        prompt: the request; its own words count as known words.
        candidates: the answers.
        row: has `constraint`, one of `CONSTRAINTS`, and `topic`, a word or two.

    Returns:
        One score in [0, 1.5] for each candidate.
    """
    known = vocabulary() | set(words(prompt))
    return [
        sense(text, known) * (meets(text, row["constraint"]) + 0.3 * names(text, row["topic"]) + 0.2 * ends(text))
        for text in candidates
    ]


def meets(text: str, constraint: str) -> bool:
    """Whether an answer meets its constraint.

    Raises:
        ValueError: the constraint is none of `CONSTRAINTS`.
    """
    text = text.strip()
    if constraint == "lower_case":
        return text == text.lower() and any(c.isalpha() for c in text)
    if constraint == "begins_with_well":
        return re.match(r'"?Well\b', text) is not None
    if constraint == "question":
        return text.rstrip('"').endswith("?")
    raise ValueError(f"expected a constraint of {', '.join(CONSTRAINTS)}; got {constraint!r}")


def names(text: str, topic: str) -> bool:
    """Whether the answer has a word of the topic, in the singular or the plural."""
    stems = {_singular(word) for word in words(topic)} - {"the"}
    return any(_singular(word) in stems for word in words(text))


def ends(text: str) -> bool:
    """Whether the answer ends as a sentence does."""
    return text.rstrip(' "').endswith((".", "!", "?"))


def sense(text: str, known: set[str]) -> float:
    """How much the answer reads like a sentence, in [0, 1]: known words, not repeated, at least eight."""
    found = words(text)
    if not found:
        return 0.0
    unknown = sum(word not in known and _singular(word) not in known for word in found) / len(found)
    distinct = len(set(found)) / len(found)
    return max(0.0, 1 - 2 * unknown) * min(1.0, distinct / 0.8) * min(1.0, len(found) / ENOUGH)


def words(text: str) -> list[str]:
    """The words of a text, in lower case; "don't" is one word."""
    return _WORD.findall(text.replace("\u2019", "'").lower())


@lru_cache(maxsize=1)
def vocabulary() -> set[str]:
    """The words that count as real, from words.txt beside this file."""
    return set(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())


def _singular(word: str) -> str:
    word = word.removesuffix("'s")
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "oes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
