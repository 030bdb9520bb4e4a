"""The tasks: rows made by code, a rule that judges, and a selector that makes pairs."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.quickstart import rule as quickstart
from experiments import arithmetic, lists
from experiments.sampled import with_candidates
from experiments.setup import Setup
from lit_align.data import BestWorst, MostDifferent, PairSelector
from lit_align.records import Candidate

Rows = list[dict[str, Any]]
QUICKSTART = Path(quickstart.__file__).parent
HELD_OUT_TOPICS = 0.35
LIST_ROWS = (480, 240)


class CoinAtTies(BestWorst):
    """Pairs the best with the worst candidate, or two random ones if all tie, as a judge without ties would."""

    def choose(
        self, ranked: Sequence[Candidate], rng: random.Random, counts: Counter[str]
    ) -> list[tuple[Candidate, Candidate]]:
        first, second = rng.sample(list(ranked), 2)
        return super().choose(ranked, rng, counts) or [(first, second)]


SELECTORS: dict[str, type[PairSelector]] = {
    "quality": BestWorst,
    "diversity": MostDifferent,
    "coin": CoinAtTies,
}


@dataclass(frozen=True)
class Task:
    """A task to learn, with its judge.

    Args:
        rows: makes (training rows, held-out rows), the same ones for the same setup.
        rule: import path of the rule that judges.
        selector: one of `SELECTORS`, which makes the pairs.
    """

    rows: Callable[[Setup], tuple[Rows, Rows]]
    rule: str
    selector: str = "quality"


def constraint_rows(_setup: Setup) -> tuple[Rows, Rows]:
    """Reads the quickstart's rows and splits them by topic so that enough are held out."""
    texts = [(QUICKSTART / name).read_text(encoding="utf-8") for name in ("train.jsonl", "held_out.jsonl")]
    rows = [json.loads(line) for line in "".join(texts).splitlines()]
    topics = sorted({row["topic"] for row in rows})
    rng = random.Random(0)
    held_out = set(rng.sample(topics, round(HELD_OUT_TOPICS * len(topics))))
    rng.shuffle(rows)
    return [r for r in rows if r["topic"] not in held_out], [r for r in rows if r["topic"] in held_out]


def list_rows(_setup: Setup) -> tuple[Rows, Rows]:
    """Makes requests about lists, all different."""
    rng = random.Random(0)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < sum(LIST_ROWS):
        row = lists.make_row(rng)
        rows[row["prompt"]] = row
    distinct = list(rows.values())
    return distinct[: LIST_ROWS[0]], distinct[LIST_ROWS[0] :]


def arithmetic_rows(setup: Setup) -> tuple[Rows, Rows]:
    """Samples the static candidates of the arithmetic task from models."""
    train, held_out = with_candidates(
        arithmetic.teaching_rows(), arithmetic.open_rows(), "experiments.arithmetic.graded", setup
    )
    return train, held_out


def yes_no_constraint(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """Scores 1 if the answer meets the constraint and reads like a sentence, else 0."""
    vocabulary = quickstart.vocabulary() | set(quickstart.words(prompt))
    return [
        float(quickstart.meets(text, row["constraint"]) and quickstart.sense(text, vocabulary) >= 0.7)
        for text in candidates
    ]


TASKS = {
    "constraints": Task(constraint_rows, "configs.quickstart.rule.rule"),
    "constraints-yes-no": Task(constraint_rows, "experiments.tasks.yes_no_constraint"),
    "constraints-coin": Task(constraint_rows, "experiments.tasks.yes_no_constraint", "coin"),
    "lists": Task(list_rows, "experiments.lists.graded"),
    "arithmetic": Task(arithmetic_rows, "experiments.arithmetic.graded"),
}


def files_of(task: str, folder: Path, setup: Setup) -> tuple[str, str]:
    """Returns the files of a task's training and held-out rows, and writes them into `folder` if they are missing."""
    model = hashlib.blake2b(f"{setup.model} {setup.dtype}".encode(), digest_size=4).hexdigest()
    name = TASKS[task].rows.__name__ + (f".{model}" if TASKS[task].rows is arithmetic_rows else "")
    paths = tuple(folder / f"{name}.{part}.jsonl" for part in ("train", "held_out"))
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        for path, rows in zip(paths, TASKS[task].rows(setup), strict=True):
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            os.replace(part, path)
    return str(paths[0]), str(paths[1])
