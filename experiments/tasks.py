"""The tasks: rows made once by code, a rule that knows the truth, and how candidates become pairs."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.quickstart import rule as quickstart
from experiments import lists
from lit_align.data import BestWorst, MostDifferent, PairSelector
from lit_align.records import Candidate

Rows = list[dict[str, Any]]
QUICKSTART = Path(quickstart.__file__).parent
HELD_OUT_TOPICS = 0.35
LIST_ROWS = (480, 240)


class CoinAtTies(BestWorst):
    """Best against worst; where all scores are equal, two random candidates: a judge that has to choose."""

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
    """What is learned and who judges it.

    Args:
        rows: makes (training rows, held-out rows); the same ones every time.
        rule: import path of the judge.
        selector: of `SELECTORS`, makes pairs.
    """

    rows: Callable[[], tuple[Rows, Rows]]
    rule: str
    selector: str = "quality"


def constraint_rows() -> tuple[Rows, Rows]:
    """The quickstart's rows, split anew by topic so that enough are held out."""
    files = (QUICKSTART / "train.jsonl", QUICKSTART / "held_out.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    topics = sorted({row["topic"] for row in rows})
    rng = random.Random(0)
    held_out = set(rng.sample(topics, round(HELD_OUT_TOPICS * len(topics))))
    rng.shuffle(rows)
    return [r for r in rows if r["topic"] not in held_out], [r for r in rows if r["topic"] in held_out]


def list_rows() -> tuple[Rows, Rows]:
    """Requests about lists, all different."""
    rng = random.Random(0)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < sum(LIST_ROWS):
        row = lists.make_row(rng)
        rows[row["prompt"]] = row
    made = list(rows.values())
    return made[: LIST_ROWS[0]], made[LIST_ROWS[0] :]


def yes_no_constraint(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """1 where the constraint is met by something that reads like a sentence, else 0."""
    known = quickstart.vocabulary() | set(quickstart.words(prompt))
    return [
        float(quickstart.meets(text, row["constraint"]) and quickstart.sense(text, known) >= 0.7) for text in candidates
    ]


TASKS = {
    "constraints": Task(constraint_rows, "configs.quickstart.rule.rule"),
    "constraints-yes-no": Task(constraint_rows, "experiments.tasks.yes_no_constraint"),
    "constraints-coin": Task(constraint_rows, "experiments.tasks.yes_no_constraint", "coin"),
    "lists": Task(list_rows, "experiments.lists.graded"),
    "lists-yes-no": Task(list_rows, "experiments.lists.yes_no"),
}


def files_of(task: str, folder: Path) -> tuple[str, str]:
    """The files of a task's training and held-out rows, written into `folder` where they are missing."""
    paths = tuple(folder / f"{TASKS[task].rows.__name__}.{part}.jsonl" for part in ("train", "held_out"))
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        for path, rows in zip(paths, TASKS[task].rows(), strict=True):
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            os.replace(part, path)
    return str(paths[0]), str(paths[1])
