"""A row becomes a :class:`CandidateSet` or a :class:`PreferencePair`, or a :class:`BadRow` that says why not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_align.records import Candidate, CandidateSet, Chat, Message, PreferencePair, Prompt
from lit_align.rows.reading import BadRow
from lit_align.rows.turns import (
    Problem,
    name,
    parse_answer,
    parse_json,
    parse_messages,
    parse_text,
    quote,
    whole_text,
)

COLUMNS = (
    "prompt", "candidates", "chosen", "rejected", "chosen_score", "rejected_score", "score_chosen", "score_rejected",
    "target", "system", "tools", "chat_template_kwargs", "id", "prompt_id",
)  # fmt: skip
"""The columns of a row that have a meaning here; any other is for the judge's rule."""
_OF_CANDIDATE = ("text", "score", "model")


def parse_row(
    row: Mapping[str, Any], where: str = "", prompts_alone: bool = False, counts: Counter[str] | None = None
) -> CandidateSet | PreferencePair:
    """Reads one row.

    Args:
        row: either `prompt` and `candidates` (a list of texts or of objects with `text` and optional `score` and
            `model`), or `chosen` and `rejected` with or without `prompt`. A prompt is text (one user turn) or a
            list of messages; a completion is text, or messages that end with the assistant's turn and may begin
            with the prompt, which then need not be given again. Optional: `system` (the system turn of a chat that
            has none), `tools` and `chat_template_kwargs` (for the chat template), `target`, and `chosen_score` and
            `rejected_score` (or `score_chosen`, `score_rejected`). Other columns stay in the record's `row`.
        where: file and row, for errors.
        prompts_alone: whether a row may have a prompt and no completion at all; it gives a set without candidates.
        counts: `unused_column/NAME` and `unused_key/NAME` (of a message or a candidate) are counted here.

    Raises:
        BadRow: if the row cannot be used.
    """
    counts = Counter() if counts is None else counts
    counts.update(f"unused_column/{key}" for key, value in row.items() if value is not None and key not in COLUMNS)
    try:
        record = _record(row, where, prompts_alone, counts)
        return replace(record, prompt=_with_settings(_with_system(record.prompt, row.get("system")), row))
    except Problem as problem:
        raise BadRow(where, problem.reason, str(problem)) from None


def _record(
    row: Mapping[str, Any], where: str, prompts_alone: bool, counts: Counter[str]
) -> CandidateSet | PreferencePair:
    if prompts_alone and _is_prompt_alone(row):
        _target(row)
        return CandidateSet(_prompt(row["prompt"], counts), (), row, where)
    if row.get("candidates") is not None:
        return _candidate_set(row, where, counts)
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return _pair(row, where, counts)
    keys = ", ".join(sorted(str(key) for key, value in row.items() if value is not None)) or "nothing"
    missing = "expected `prompt` with `candidates`, or `chosen` and `rejected` with or without `prompt`"
    alone = ", which alone takes a sampler and a judge (`data.sampler`, `data.judge`)" if _is_prompt_alone(row) else ""
    raise Problem("missing_keys", f"{missing}; got {keys}{alone}")


def _with_system(prompt: Prompt, system: Any) -> Prompt:
    """The prompt with the row's `system` as its first turn."""
    if system is None or system == "":
        return prompt
    text = parse_text(system, "system")
    if prompt[0].role not in ("system", "developer"):
        return (Message("system", text), *prompt)
    if prompt[0].content != text:
        why = f"expected one system turn, got `system` {quote(text)} and the chat's own {quote(prompt[0].content)}"
        raise Problem("systems_differ", why)
    return prompt


def _with_settings(prompt: Prompt, row: Mapping[str, Any]) -> Prompt:
    """The prompt with what the row gives to the chat template beside it."""
    tools = parse_json(row.get("tools"), "tools", list)
    kwargs = parse_json(row.get("chat_template_kwargs"), "chat_template_kwargs", dict)
    return Chat(prompt, tools, kwargs) if tools or kwargs else prompt


def _is_prompt_alone(row: Mapping[str, Any]) -> bool:
    """`candidates` may be an empty list; half of a pair is a mistake, not a prompt."""
    is_pair = any(row.get(key) is not None for key in ("chosen", "rejected"))
    candidates = row.get("candidates")
    has_none = candidates is None or (isinstance(candidates, list | tuple) and not candidates)
    return row.get("prompt") is not None and not is_pair and has_none


def _candidate_set(row: Mapping[str, Any], where: str, counts: Counter[str]) -> CandidateSet:
    if row.get("prompt") is None:
        raise Problem("missing_keys", "expected a `prompt` beside `candidates`, got none")
    prompt = _prompt(row["prompt"], counts)
    raw = row["candidates"]
    if not isinstance(raw, list | tuple):
        raise Problem("wrong_type", f"expected `candidates` as a list of texts or of objects, got {name(raw)}")
    if not raw:
        raise Problem("no_candidates", "expected at least one candidate, got an empty list")
    _target(row)
    candidates = tuple(_candidate(value, f"candidates[{index}]", counts) for index, value in enumerate(raw))
    return CandidateSet(prompt, candidates, row, where)


def _candidate(value: Any, key: str, counts: Counter[str]) -> Candidate:
    if isinstance(value, str):
        return Candidate(parse_text(value, key))
    if not isinstance(value, Mapping):
        raise Problem("wrong_type", f"expected `{key}` as text or as an object with `text`, got {name(value)}")
    text = value.get("text")
    if text is None:
        raise Problem("missing_keys", f"expected `{key}` to have `text`, got {', '.join(map(str, value)) or 'nothing'}")
    model = value.get("model")
    if model is not None and not isinstance(model, str):
        raise Problem("wrong_type", f"expected `{key}.model` as text, got {name(model)}")
    unused = [part for part, content in value.items() if content is not None and part not in _OF_CANDIDATE]
    counts.update(f"unused_key/{part}" for part in unused)
    return Candidate(parse_text(text, key), _score(value.get("score"), f"{key}.score"), model)


def _pair(row: Mapping[str, Any], where: str, counts: Counter[str]) -> PreferencePair:
    chosen_prompt, chosen = _split(row.get("prompt"), row["chosen"], "chosen", counts)
    rejected_prompt, rejected = _split(row.get("prompt"), row["rejected"], "rejected", Counter())  # the prompt's again
    if chosen_prompt != rejected_prompt:
        why = "expected `chosen` and `rejected` to share all turns but the last, they differ"
        raise Problem("prompts_differ", why)
    if chosen == rejected:
        raise Problem("equal_completions", f"expected two different completions, got twice {quote(chosen.text)}")
    scores = [_score(_first(row, f"{key}_score", f"score_{key}"), f"{key}_score") for key in ("chosen", "rejected")]
    margin = scores[0] - scores[1] if scores[0] is not None and scores[1] is not None else None
    return PreferencePair(
        prompt=chosen_prompt,
        chosen=replace(chosen, score=scores[0]),
        rejected=replace(rejected, score=scores[1]),
        margin=margin,
        target=_target(row),
        row=row,
        where=where,
    )


def _split(row_prompt: Any, value: Any, key: str, counts: Counter[str]) -> tuple[Prompt, Candidate]:
    """The whole prompt and the completion of `chosen` or `rejected`, whose messages may repeat the prompt."""
    if isinstance(value, str):
        if row_prompt is None:
            why = f"expected a `prompt` beside a `{key}` of plain text, or `{key}` as messages that begin with it"
            raise Problem("missing_keys", why)
        return _prompt(row_prompt, counts), Candidate(parse_text(value, key))
    turns = parse_messages(value, key, counts)
    if turns[-1].role != "assistant":
        raise Problem("last_turn", f"expected the last turn of `{key}` to be the assistant's, got {turns[-1].role}'s")
    before = turns[:-1]
    completion = parse_answer(turns[-1], key)
    if row_prompt is None:
        return _check_prompt(before, key), completion
    prompt = _prompt(row_prompt, counts)
    if not before or before[0].role == "assistant":  # the messages go on from the prompt
        return _check_prompt(prompt + before, key), completion
    users = [message.content for message in before if message.role == "user"]
    repeats_text = isinstance(row_prompt, str) and users and row_prompt in (users[0], users[-1])
    if before[: len(prompt)] != prompt and not repeats_text:
        why = f"expected `{key}` to begin with the row's prompt {quote(row_prompt)}, got {quote(before[0].content)}"
        raise Problem("prompts_differ", why)
    return _check_prompt(before, key), completion


def _prompt(value: Any, counts: Counter[str]) -> Prompt:
    if isinstance(value, str):
        return _check_prompt((Message("user", whole_text(value, "prompt")),), "prompt")
    return _check_prompt(parse_messages(value, "prompt", counts), "prompt")


def _check_prompt(turns: Prompt, key: str) -> Prompt:
    if not turns:
        raise Problem("empty_prompt", f"expected a prompt before the assistant's turn in `{key}`, got none")
    if turns[-1].role not in ("user", "tool"):
        why = f"expected the prompt in `{key}` to end with the user's turn, got {turns[-1].role}'s"
        raise Problem("last_turn", why)
    if not turns[-1].content.strip():
        raise Problem("empty_prompt", f"expected a prompt with text, got {quote(turns[-1].content)}")
    return turns


def _score(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Problem("wrong_type", f"expected `{key}` as a number, got {name(value)}")
    try:
        number = float(value)
    except OverflowError:  # of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise Problem("bad_score", f"expected `{key}` as a finite number, got {quote(value)}")
    return number


def _target(row: Mapping[str, Any]) -> str | None:
    return None if row.get("target") is None else parse_text(row["target"], "target")


def _first(row: Mapping[str, Any], *keys: str) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)
