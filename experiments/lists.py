"""A task with a truth: repeat, capitalise or sort a short list, and write nothing else.

The base model knows what a list is and mostly talks about it instead. Each answer has one right text, so that a
grade is its similarity to it, word by word: chatter, missing items and wrong order all cost.
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
    """A request with its right answer and four answers, each with one fault or none."""
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
    """The items as the request wants them."""
    if kind == "capitals":
        return [item.upper() for item in items]
    return sorted(items, key=int) if kind == "sort" else list(items)


def faulty(right: Sequence[str], items: Sequence[str], fault: str, rng: random.Random) -> str:
    """The right answer with a fault of `FAULTS`; the last three are what the base model does by itself."""
    if fault == "about":
        return rng.choice(ABOUT).format(*rng.sample(list(items), 2))
    found = list(right)
    if fault == "swapped":
        at = rng.randrange(len(found) - 1)
        found[at], found[at + 1] = found[at + 1], found[at]
    elif fault == "short":
        found.pop(rng.randrange(len(found)))
    elif fault in ("talk", "again"):
        found = list(items) * (2 if fault == "again" else 1)
    text = ", ".join(found)
    return rng.choice(TALK).format(text) if fault == "talk" else text + rng.choice(("", "."))


def graded(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """1 - edit distance in words / length of the longer text, in [0, 1]; case counts, punctuation does not."""
    right = _WORD.findall(row["answer"])
    return [similarity(_WORD.findall(text), right) for text in candidates]


def yes_no(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """1 for the right words and no others, else 0."""
    return [float(score == 1) for score in graded(prompt, candidates, row)]


def similarity(a: Sequence[str], b: Sequence[str]) -> float:
    """1 - Levenshtein distance / length of the longer sequence; 1 for two empty ones."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    longest = max(len(a), len(b))
    return 1 - row[-1] / longest if longest else 1.0
