"""The judge of the quickstart: a rule that grades an answer to a request with one checkable constraint.

A yes/no rule would leave most answers tied and could be met by nonsense. This one is a sum of parts, weighted by
how much the answer reads like a sentence:

    score = sense * (1.0 * constraint met + 0.3 * names its topic + 0.2 * ends as a sentence)   in [0, 1.5]

`sense` in [0, 1] falls with made-up words (those not in words.txt), with repeated words and with answers of fewer than
 eight words, so that "Well well well" or "beehomesweet" score close to 0.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

CONSTRAINTS = ("lower_case", "begins_with_well", "question")
ENOUGH_WORDS = 8
"""The number of words that an answer needs for its full score."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """Scores the candidates of one prompt.

    Args:
        prompt: the request; its words count as real words.
        candidates: the answers.
        row: has `constraint`, one of `CONSTRAINTS`, and `topic`, a word or two.

    Returns:
        One score in [0, 1.5] for each candidate.
    """
    real_words = vocabulary() | set(words(prompt))
    return [
        sense(text, real_words) * (meets(text, row["constraint"]) + 0.3 * names(text, row["topic"]) + 0.2 * ends(text))
        for text in candidates
    ]


def meets(text: str, constraint: str) -> bool:
    """Whether an answer meets its constraint.

    Raises:
        ValueError: the constraint is not one of `CONSTRAINTS`.
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


def sense(text: str, real_words: set[str]) -> float:
    """How much the answer reads like a sentence, in [0, 1]: real words, not repeated, at least eight."""
    answer = words(text)
    if not answer:
        return 0.0
    unreal = sum(word not in real_words and _singular(word) not in real_words for word in answer) / len(answer)
    distinct = len(set(answer)) / len(answer)
    return max(0.0, 1 - 2 * unreal) * min(1.0, distinct / 0.8) * min(1.0, len(answer) / ENOUGH_WORDS)


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
