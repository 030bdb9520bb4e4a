"""A row becomes a :class:`CandidateSet` or a :class:`PreferencePair`, or a :class:`BadRow` that says why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lit_align.data.reading import BadRow
from lit_align.records import Candidate, CandidateSet, Message, PreferencePair, Prompt

ROLES = ("system", "developer", "user", "assistant", "tool")


class _Problem(Exception):
    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


def parse_row(row: Mapping[str, Any], where: str = "", prompts_alone: bool = False) -> CandidateSet | PreferencePair:
    """Reads one row.

    Args:
        row: either `prompt` and `candidates` (a list of texts or of objects with `text` and optional `score` and
            `model`), or `chosen` and `rejected` with or without `prompt`. A prompt is text (one user turn) or a
            list of messages; a completion is text, or messages that end with the assistant's turn and may begin
            with the prompt, which then need not be given again. Optional: `target`, and `chosen_score` and
            `rejected_score` (or `score_chosen`, `score_rejected`). Other columns stay in the record's `row`.
        where: file and row, for errors.
        prompts_alone: whether a row may have a prompt and no completion at all; it gives a set without candidates.

    Raises:
        BadRow: if the row cannot be used.
    """
    try:
        if prompts_alone and _is_prompt_alone(row):
            _target(row)
            return CandidateSet(_prompt(row["prompt"]), (), row, where)
        if row.get("candidates") is not None:
            return _candidate_set(row, where)
        if row.get("chosen") is not None and row.get("rejected") is not None:
            return _pair(row, where)
        keys = ", ".join(sorted(key for key, value in row.items() if value is not None)) or "nothing"
        missing = "expected `prompt` with `candidates`, or `chosen` and `rejected` with or without `prompt`"
        raise _Problem("missing_keys", f"{missing}; got {keys}")
    except _Problem as problem:
        raise BadRow(where, problem.reason, str(problem)) from None


def _is_prompt_alone(row: Mapping[str, Any]) -> bool:
    """`candidates` may be an empty list; half of a pair is a mistake, not a prompt."""
    completions = [row.get(key) for key in ("chosen", "rejected")]
    return row.get("prompt") is not None and completions == [None, None] and row.get("candidates") in (None, [], ())


def _candidate_set(row: Mapping[str, Any], where: str) -> CandidateSet:
    if row.get("prompt") is None:
        raise _Problem("missing_keys", "expected a `prompt` beside `candidates`, got none")
    prompt = _prompt(row["prompt"])
    raw = row["candidates"]
    if not isinstance(raw, list | tuple):
        raise _Problem("wrong_type", f"expected `candidates` as a list of texts or of objects, got {_name(raw)}")
    if not raw:
        raise _Problem("no_candidates", "expected at least one candidate, got an empty list")
    _target(row)
    candidates = tuple(_candidate(value, f"candidates[{index}]") for index, value in enumerate(raw))
    return CandidateSet(prompt, candidates, row, where)


def _candidate(value: Any, key: str) -> Candidate:
    if isinstance(value, str):
        return Candidate(_completion(value, key))
    if not isinstance(value, Mapping):
        raise _Problem("wrong_type", f"expected `{key}` as text or as an object with `text`, got {_name(value)}")
    if value.get("text") is None:
        raise _Problem(
            "missing_keys", f"expected `{key}` to have `text`, got {', '.join(map(str, value)) or 'nothing'}"
        )
    model = value.get("model")
    if model is not None and not isinstance(model, str):
        raise _Problem("wrong_type", f"expected `{key}.model` as text, got {_name(model)}")
    return Candidate(_completion(value["text"], key), _score(value.get("score"), f"{key}.score"), model)


def _pair(row: Mapping[str, Any], where: str) -> PreferencePair:
    given = row.get("prompt")
    chosen_prompt, chosen = _split(given, row["chosen"], "chosen")
    rejected_prompt, rejected = _split(given, row["rejected"], "rejected")
    if chosen_prompt != rejected_prompt:
        raise _Problem(
            "prompts_differ", "expected `chosen` and `rejected` to share all turns but the last, they differ"
        )
    if chosen == rejected:
        raise _Problem("equal_completions", f"expected two different completions, got twice {_quote(chosen)}")
    scores = [_score(_first(row, f"{key}_score", f"score_{key}"), f"{key}_score") for key in ("chosen", "rejected")]
    margin = scores[0] - scores[1] if scores[0] is not None and scores[1] is not None else None
    return PreferencePair(
        prompt=chosen_prompt,
        chosen=Candidate(chosen, scores[0]),
        rejected=Candidate(rejected, scores[1]),
        margin=margin,
        target=_target(row),
        row=row,
        where=where,
    )


def _split(given: Any, value: Any, key: str) -> tuple[Prompt, str]:
    """The whole prompt and the completion of `chosen` or `rejected`, whose messages may repeat the prompt."""
    if isinstance(value, str):
        if given is None:
            why = f"expected a `prompt` beside a `{key}` of plain text, or `{key}` as messages that begin with it"
            raise _Problem("missing_keys", why)
        return _prompt(given), _completion(value, key)
    turns = _messages(value, key)
    if turns[-1].role != "assistant":
        raise _Problem("last_turn", f"expected the last turn of `{key}` to be the assistant's, got {turns[-1].role}'s")
    before, completion = turns[:-1], _completion(turns[-1].content, key)
    if given is None:
        return _check_prompt(before, key), completion
    prompt = _prompt(given)
    if not before or before[0].role == "assistant":  # the messages go on from the prompt
        return _check_prompt(prompt + before, key), completion
    users = [message.content for message in before if message.role == "user"]
    same = before[: len(prompt)] == prompt or (isinstance(given, str) and users and given in (users[0], users[-1]))
    if not same:
        why = f"expected `{key}` to begin with the row's prompt {_quote(given)}, got {_quote(before[0].content)}"
        raise _Problem("prompts_differ", why)
    return _check_prompt(before, key), completion


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        return _check_prompt((Message("user", _whole(value, "prompt")),), "prompt")
    return _check_prompt(_messages(value, "prompt"), "prompt")


def _check_prompt(turns: Prompt, key: str) -> Prompt:
    if not turns:
        raise _Problem("empty_prompt", f"expected a prompt before the assistant's turn in `{key}`, got none")
    if turns[-1].role not in ("user", "tool"):
        why = f"expected the prompt in `{key}` to end with the user's turn, got {turns[-1].role}'s"
        raise _Problem("last_turn", why)
    if not turns[-1].content.strip():
        raise _Problem("empty_prompt", f"expected a prompt with text, got {_quote(turns[-1].content)}")
    return turns


def _messages(value: Any, key: str) -> Prompt:
    if not isinstance(value, list | tuple):
        raise _Problem("wrong_type", f"expected `{key}` as text or as a list of messages, got {_name(value)}")
    if not value:
        raise _Problem("empty_prompt" if key == "prompt" else "empty_completion", f"`{key}` is an empty list")
    return tuple(_message(turn, f"{key}[{index}]") for index, turn in enumerate(value))


def _message(turn: Any, key: str) -> Message:
    if not isinstance(turn, Mapping):
        raise _Problem("wrong_type", f"expected `{key}` as a message with `role` and `content`, got {_name(turn)}")
    role, content = turn.get("role"), turn.get("content")
    if role is None or content is None:
        raise _Problem(
            "missing_keys", f"expected `{key}` to have `role` and `content`, got {', '.join(map(str, turn))}"
        )
    if role not in ROLES:
        raise _Problem("unknown_role", f"expected the role of `{key}` to be one of {', '.join(ROLES)}, got {role!r}")
    if not isinstance(content, str):
        raise _Problem("wrong_type", f"expected the content of `{key}` as text, got {_name(content)}")
    return Message(role, _whole(content, key))


def _completion(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _Problem("wrong_type", f"expected the text of `{key}` as text, got {_name(value)}")
    if not value.strip():
        raise _Problem("empty_completion", f"expected `{key}` to have text, got {value!r}")
    return _whole(value, key)


def _whole(text: str, key: str) -> str:
    """The text itself; JSON can escape half of a character, which no tokenizer takes and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start : error.end])
        why = f"expected `{key}` as Unicode text, got {half} at character {error.start}: half of a surrogate pair"
        raise _Problem("not_utf8", why) from None
    return text


def _score(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Problem("wrong_type", f"expected `{key}` as a number, got {_name(value)}")
    if not math.isfinite(value):
        raise _Problem("bad_score", f"expected `{key}` as a finite number, got {value}")
    return float(value)


def _target(row: Mapping[str, Any]) -> str | None:
    return None if row.get("target") is None else _completion(row["target"], "target")


def _first(row: Mapping[str, Any], *keys: str) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _name(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {_quote(value)}"


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
