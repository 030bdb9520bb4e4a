"""Predictions say which row they are of, and which rows gave none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_align.data.static import KEPT_TO_MEASURE
from tests.helpers.data_fakes import data_module, pair_rows, write


def pair(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": f"good {prompt}", "rejected": f"bad {prompt}", **more}


HELD_OUT: list[dict[str, Any]] = [
    pair("a", id="first"),
    pair("b", prompt_id=7),
    {"prompt": "same", "chosen": "x", "rejected": "x"},
    pair("long", chosen="word " * 200, id="third"),
    {"prompt": "sets", "candidates": [{"text": "p", "score": 1}, {"text": "q", "score": 1}], "id": 5},
    {"prompt": "broken", "chosen": "no other side"},
    pair("c"),
]


def test_each_pair_knows_its_row_and_each_lost_row_its_reason(tmp_path: Path) -> None:
    val = write(tmp_path / "val.jsonl", HELD_OUT)
    options: dict[str, Any] = {"val": val, "on_bad_row": "skip", "max_completion_tokens": 60, "boundary_fraction": 0.0}
    with pytest.warns(UserWarning, match="skipped 2 bad rows"):
        data = data_module(write(tmp_path / "train.jsonl", pair_rows(4)), judge=None, sampler=None, **options)
    rows = [row.as_dict() for row in data.val_rows.of_pairs]
    assert rows == [
        {"id": "first", "index": 0, "where": f"{val}, row 1", "prompt": "a"},
        {"id": 7, "index": 1, "where": f"{val}, row 2", "prompt": "b"},
        {"index": 4, "where": f"{val}, row 7", "prompt": "c"},
    ]
    assert len(data.val_pairs) == len(rows)
    lost = {row["where"].removeprefix(f"{val}, "): row for row in data.val_rows.dropped}
    assert {where: row["dropped"] for where, row in lost.items()} == {
        "row 3": ["bad_row/equal_completions"],
        "row 4": ["completion_too_long"],
        "row 5": ["ties"],
        "row 6": ["bad_row/missing_keys"],
    }
    assert lost["row 4"]["id"] == "third" and lost["row 5"]["prompt"] == "sets" and "why" in lost["row 6"]
    assert data.counts["val/pairs"] == 3 and data.counts["val/ties"] == 1, "and all are counted as before"


def test_prompts_of_the_boundary_and_prompts_alone_are_named(tmp_path: Path) -> None:
    val = write(tmp_path / "val.jsonl", [*(pair(f"p{n}") for n in range(20)), {"prompt": "alone"}])
    data = data_module(write(tmp_path / "train.jsonl", pair_rows(4)), val=val)
    reasons = {row["prompt"]: row["dropped"] for row in data.val_rows.dropped}
    assert reasons.pop("alone") == ["prompt_only"]
    assert {name for of_row in reasons.values() for name in of_row} == {KEPT_TO_MEASURE}
    assert len(reasons) == len(data.measured_on) and len(reasons) + len(data.val_pairs) == 20
