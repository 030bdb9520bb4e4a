"""A task with a checkable answer whose static candidates nobody wrote: sums and differences of two numbers.

The candidates are samples (`experiments.sampled`): of the base model, and of the same model after some training on
right answers to other problems. An answer's last number is its result.
"""

from __future__ import annotations

import random
import re
from itertools import product
from typing import Any

LARGEST = 60
TEACHING, TRAINING, HELD_OUT = 120, 420, 240
"""Numbers of problems: to teach the model that half of the static candidates come from, to train on, held out."""
QUESTIONS = ("What is {}?", "Compute {}.", "How much is {}?")
NEAR = 0.5
"""The score of a wrong number at most."""
_NUMBER = re.compile(r"\d+")


def problems() -> list[dict[str, Any]]:
    """Makes `TEACHING + TRAINING + HELD_OUT` different problems, the same ones at every call."""
    rng = random.Random(0)
    pairs = [(a, b) for a, b in product(range(2, LARGEST), repeat=2) if a >= b]
    rows = []
    for a, b in rng.sample(pairs, TEACHING + TRAINING + HELD_OUT):
        sign = rng.choice("+-")
        question = rng.choice(QUESTIONS).format(f"{a} {sign} {b}")
        rows.append({"prompt": question, "answer": str(a + b if sign == "+" else a - b)})
    return rows


def teaching_rows() -> list[dict[str, Any]]:
    """The problems with right answers, as pairs with a wrong one, which supervised training does not look at."""
    return [
        {"prompt": row["prompt"], "chosen": f"{row['answer']}.", "rejected": f"{int(row['answer']) + 10}."}
        for row in problems()[:TEACHING]
    ]


def open_rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The problems to train on and those held out, without candidates."""
    rows = problems()[TEACHING:]
    return rows[:TRAINING], rows[TRAINING:]


def graded(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """Scores 1 for the right result, up to `NEAR` the nearer a wrong one is, and 0 without a number."""
    return [_grade(text, int(row["answer"])) for text in candidates]


def _grade(text: str, right: int) -> float:
    numbers = _NUMBER.findall(text)
    if not numbers:
        return 0.0
    distance = abs(int(numbers[-1][:6]) - right)
    return NEAR / distance if distance else 1.0
