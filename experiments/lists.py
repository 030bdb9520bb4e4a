"""A task with a known right answer: repeat, capitalise or sort a short list, and write nothing else.

The base model mostly talks about the list instead. An answer's grade is its similarity to the right answer, word by
word: chatter, missing items and wrong order all lower it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

ITEMS = (
    "apple", "bread", "chair", "dog", "egg", "fish", "goat", "house", "ice", "jam", "king", "lamp", "moon", "nut",
    "owl", "pear", "queen", "rose", "sun", "tree", "cup", "door", "fox", "glass", "hat", "iron", "jar", "kite",
    "leaf", "milk", "nest", "oven", "pen", "ring", "ship", "table", "wall", "yard", "zebra", "bell", "coat", "drum",
)  # fmt: skip
LENGTH = 4
REQUESTS = {
    "repeat": ("Repeat these words: {}", "Write this list again: {}", "Copy these words: {}"),
    "capitals": ("Write these words in capital letters: {}", "Put this list in capital letters: {}"),
    "sort": ("Sort these numbers from smallest to largest: {}", "Write these numbers in rising order: {}"),
}
FAULTS = ("none", "swapped", "short", "talk", "again", "about")
TALK = ("The words are {}.", "Here is the list: {}", "In this case, we have {} in this order.")
ABOUT = (
    "The {} and the {} are two of the items in this list.", "This is a list with {} and {} in it.",
    "I'm happy to help! Let's begin with {} and then go on with {}.",
)  # fmt: skip
_WORD = re.compile(r"\w+")


def make_row(rng: random.Random) -> dict[str, Any]:
    """Makes a request with its right answer and four candidates, each with one fault or none."""
    kind = rng.choice(sorted(REQUESTS))
    items = [str(n) for n in rng.sample(range(1, 100), LENGTH)] if kind == "sort" else rng.sample(ITEMS, LENGTH)
    right = right_answer(kind, items)
    answers: list[str] = []
    while len(answers) < 4:
        text = faulty(right, items, rng.choice(FAULTS), rng)
        if text not in answers:
            answers.append(text)
    prompt = rng.choice(REQUESTS[kind]).format(", ".join(items))
    return {"prompt": prompt, "kind": kind, "answer": ", ".join(right), "candidates": [{"text": t} for t in answers]}


def right_answer(kind: str, items: Sequence[str]) -> list[str]:
    """Returns the items as the request asks for them."""
    if kind == "capitals":
        return [item.upper() for item in items]
    return sorted(items, key=int) if kind == "sort" else list(items)


def faulty(right: Sequence[str], items: Sequence[str], fault: str, rng: random.Random) -> str:
    """Returns the right answer with one of `FAULTS`; the last three are typical of the base model."""
    if fault == "about":
        return rng.choice(ABOUT).format(*rng.sample(list(items), 2))
    answer = list(right)
    if fault == "swapped":
        i = rng.randrange(len(answer) - 1)
        answer[i], answer[i + 1] = answer[i + 1], answer[i]
    elif fault == "short":
        answer.pop(rng.randrange(len(answer)))
    elif fault in ("talk", "again"):
        answer = list(items) * (2 if fault == "again" else 1)
    text = ", ".join(answer)
    return rng.choice(TALK).format(text) if fault == "talk" else text + rng.choice(("", "."))


def graded(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """Scores by 1 - edit distance in words / length of the longer text; case counts, punctuation does not."""
    right = _WORD.findall(row["answer"])
    return [similarity(_WORD.findall(text), right) for text in candidates]


def similarity(a: Sequence[str], b: Sequence[str]) -> float:
    """Computes 1 - Levenshtein distance / length of the longer sequence; 1 for two empty ones."""
    distances = list(range(len(b) + 1))  # from the words of `a` so far to each prefix of `b`
    for i, word_a in enumerate(a, 1):
        diagonal = distances[0]
        distances[0] = i
        for j, word_b in enumerate(b, 1):
            substituted = diagonal + (word_a != word_b)
            diagonal = distances[j]
            distances[j] = min(distances[j] + 1, distances[j - 1] + 1, substituted)
    longest = max(len(a), len(b))
    return 1 - distances[-1] / longest if longest else 1.0
