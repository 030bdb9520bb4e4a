"""The cells of a CSV row, which are all text, get their types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_JSON_CELLS = ("prompt", "chosen", "rejected")
_SCORE_CELLS = ("chosen_score", "rejected_score", "score_chosen", "score_rejected")


def typed_cells(cells: Mapping[str, Any]) -> dict[str, Any]:
    """A row of its cells: chats and candidates may be JSON, scores are numbers, an empty optional cell is no value."""
    row: dict[str, Any] = dict(cells)
    for key in _JSON_CELLS:
        parsed = _json_or_none(row.get(key))
        if isinstance(parsed, list) and parsed and all(isinstance(turn, dict) and "role" in turn for turn in parsed):
            row[key] = parsed
    if isinstance(row.get("chosen"), list):
        row["prompt"] = row.get("prompt") or None
    if row.get("candidates"):
        row["candidates"] = _json_or_none(row["candidates"]) or row["candidates"]
    for key in ("candidates", "target", *_SCORE_CELLS):  # an empty cell of an optional column is no value
        if key in row:
            row[key] = row[key] or None
    for key in _SCORE_CELLS:
        if row.get(key) is not None:
            with suppress(ValueError):  # a text that is no number stays, for the error to name it
                row[key] = float(row[key])
    return row


def _json_or_none(text: Any) -> Any:
    if not isinstance(text, str) or not text.lstrip().startswith("["):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
