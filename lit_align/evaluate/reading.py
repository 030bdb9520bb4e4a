"""Prompts and answers from files: lit-align's rows, AlpacaEval's and MT-Bench's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_align.records import CandidateSet
from lit_align.rows.loading import as_set
from lit_align.rows.parse import parse_row
from lit_align.rows.reading import BadRow, RowSource, describe_source, read_rows

_ANSWERS = ("output", "answer", "response", "completion")


def read_prompts(source: RowSource) -> list[CandidateSet]:
    """The prompts of a file, each once; whatever answers it has are left out.

    Args:
        source: rows with a `prompt` (text or messages), an `instruction` (AlpacaEval) or `turns` (MT-Bench, of which
            the first is asked), in any format that a run's data may have.

    Raises:
        BadRow: a row has none of these.
        ValueError: there are no rows.
    """
    return [replace(candidates, candidates=()) for candidates in _read(source)]


def read_answers(source: str) -> list[CandidateSet]:
    """The prompts of a file, each once with one answer.

    Args:
        source: rows as :func:`read_prompts` takes them, with an `output` (or `answer`, `response`, `completion`), or
            rows of a run's data: then the first of the `candidates` counts, or the `chosen` answer.

    Raises:
        BadRow: a row has no prompt.
        ValueError: there are no rows, or one has no answer.
    """
    answered = _read(source)
    without = next((candidates for candidates in answered if not candidates.candidates), None)
    if without is not None:
        raise ValueError(
            f"expected an answer in {without.where}: one of {', '.join(_ANSWERS)}, `candidates` or `chosen`, beside "
            "the prompt"
        )
    return [replace(candidates, candidates=candidates.candidates[:1]) for candidates in answered]


def _read(source: RowSource) -> list[CandidateSet]:
    """The first row of each prompt."""
    by_prompt: dict[Any, CandidateSet] = {}
    for row, where in read_rows(source):
        if isinstance(row, BadRow):
            raise row
        candidates = as_set(parse_row(_with_our_names(row), where, prompts_alone=True))
        by_prompt.setdefault(candidates.prompt, candidates)
    if not by_prompt:
        raise ValueError(f"expected prompts in {describe_source(source)}, got no rows")
    return list(by_prompt.values())


def _with_our_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with `prompt` and `candidates` in place of other programs' names."""
    ours = dict(row)
    if "opponent_output" in row and row.get("messages"):  # of an earlier evaluation: a chat's text is not its turns
        ours["prompt"] = row["messages"]
    if ours.get("prompt") is None:
        if isinstance(ours.get("turns"), list) and ours["turns"]:
            ours["prompt"] = ours["turns"][0]
        elif ours.get("instruction") is not None:
            ours["prompt"] = "\n\n".join(filter(None, (ours["instruction"], ours.get("input"))))
    answer = next((row[name] for name in _ANSWERS if isinstance(row.get(name), str)), None)
    if answer is not None and not ours.get("candidates"):
        ours["candidates"] = [{"text": answer, "model": row.get("generator")}]
    if ours.get("category") is None and "generator" in ours and isinstance(ours.get("dataset"), str):
        ours["category"] = ours["dataset"]  # AlpacaEval's
    return ours
