"""The answers of a run for its page, within a limit of size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_align.escape import escape
from lit_align.html_report.record import RunRecord

ANSWER_CHARACTERS = 1500
PROMPT_CHARACTERS = 1000
BUDGET = 1_200_000
"""Characters of all answers of a page at most, half of them for the decisions and half for before and after."""


@dataclass(frozen=True)
class Shown:
    """Rows for the page.

    Args:
        rows: as plain data.
        note: what was left out, in words; empty if nothing.
    """

    rows: list[dict[str, Any]]
    note: str = ""


def sampled(run: RunRecord, budget: int = BUDGET // 2) -> Shown:
    """The sampled answers at each decision, both sources of a prompt in one row, with the change of the mean score.

    Where they are too many, each decision keeps its first prompts.

    Args:
        run: the run.
        budget: characters at most.
    """
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in run.samples:
        by_step.setdefault(row["step"], []).append(_sample(row))
    kept = _within({step: [(row, _size(row)) for row in rows] for step, rows in by_step.items()}, budget)
    return Shown(kept, _note(len(kept), len(run.samples), kept))


def before_and_after(run: RunRecord, budget: int = BUDGET // 2) -> Shown:
    """The answers at the start and at the end, with the change of the score."""
    rows = [_answer(row) for row in run.answers]
    kept = _within({0: [(row, _size(row)) for row in rows]}, budget)
    return Shown(kept, _note(len(kept), len(rows), kept))


def _within(groups: Mapping[int, Sequence[tuple[dict[str, Any], int]]], budget: int) -> list[dict[str, Any]]:
    """The first rows of each group, taken in turn, as many as fit into the budget."""
    most = max((len(rows) for rows in groups.values()), default=0)
    taken: dict[int, int] = dict.fromkeys(groups, 0)
    full: set[int] = set()
    spent = 0
    for place in range(most):
        layer = {step: rows[place][1] for step, rows in groups.items() if place < len(rows) and step not in full}
        for step, size in layer.items():
            if spent + size > budget:
                full.add(step)
                continue
            spent += size
            taken[step] = place + 1
    return [row for step, rows in groups.items() for row, _ in rows[: taken[step]]]


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    on = [_side(answer) for answer in row["on_policy"]]
    off = [_side(answer) for answer in row["off_policy"]]
    on_mean = _mean(on)
    off_mean = _mean(off)
    change = None if on_mean is None or off_mean is None else on_mean - off_mean
    return {
        "step": row["step"],
        "prompt": _cut(row.get("prompt"), PROMPT_CHARACTERS),
        "on": on,
        "off": off,
        "change": change,
    }


def _side(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": _cut(answer["text"], ANSWER_CHARACTERS), "score": _score(answer.get("score"))}


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    before = _score(row.get("score_before"))
    after = _score(row.get("score_after"))
    return {
        "prompt": _cut(row["prompt"], PROMPT_CHARACTERS),
        "on": [{"text": _cut(row["after"], ANSWER_CHARACTERS), "score": after}],
        "off": [{"text": _cut(row["before"], ANSWER_CHARACTERS), "score": before}],
        "change": None if before is None or after is None else after - before,
    }


def _score(value: Any) -> float | None:
    """A finite score; None where the judge gave none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _mean(answers: Sequence[Mapping[str, Any]]) -> float | None:
    scores = [answer["score"] for answer in answers if answer["score"] is not None]
    return sum(scores) / len(scores) if scores else None


def _cut(text: Any, limit: int) -> str:
    whole = escape(str(text))
    return whole if len(whole) <= limit else f"{whole[:limit]} [... {len(whole) - limit:,} more characters]"


def _size(row: Mapping[str, Any]) -> int:
    return len(row["prompt"]) + sum(len(answer["text"]) for answer in (*row["on"], *row["off"]))


def _note(kept: int, total: int, rows: Sequence[Mapping[str, Any]]) -> str:
    parts = [] if kept == total else [f"{kept:,} of {total:,} prompts are shown; the run folder has all"]
    if any("more characters]" in answer["text"] for row in rows for answer in (*row["on"], *row["off"])):
        parts.append(f"answers above {ANSWER_CHARACTERS:,} characters are cut")
    note = "; ".join(parts)
    return f"{note[:1].upper()}{note[1:]}." if note else ""
