"""The messages of a row become the turns of a chat."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lit_align.records import Candidate, Message

ROLES = ("system", "developer", "user", "assistant", "tool")
TEMPLATE_KEYS = ("name", "reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id", "tool_plan")
"""Keys of a message, beside `role` and `content`, that chat templates write."""


class Problem(Exception):
    """A row that cannot be used.

    Args:
        reason: a short name that skips are counted under.
        why: what was expected and what came.
    """

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


def parse_messages(value: Any, key: str, counts: Counter[str]) -> tuple[Message, ...]:
    """A list of messages, each with `role`, `content` and keys that a template writes; others are counted.

    Args:
        value: what the row holds.
        key: where, for errors.
        counts: `unused_key/NAME` is counted here.

    Raises:
        Problem: it is no such list.
    """
    if not isinstance(value, list | tuple):
        raise Problem("wrong_type", f"expected `{key}` as text or as a list of messages, got {name(value)}")
    if not value:
        raise Problem("empty_prompt" if key == "prompt" else "empty_completion", f"`{key}` is an empty list")
    return tuple(_message(turn, f"{key}[{index}]", counts) for index, turn in enumerate(value))


def parse_answer(message: Message, key: str) -> Candidate:
    """The candidate that an assistant's turn is.

    Raises:
        Problem: it says nothing and calls no tool.
    """
    return Candidate(parse_text(message.content, key), turn=message.turn)


def parse_text(value: Any, key: str) -> str:
    """A text that says something.

    Raises:
        Problem: it does not, or is none.
    """
    if not isinstance(value, str):
        raise Problem("wrong_type", f"expected the text of `{key}` as text, got {name(value)}")
    if not value.strip():
        raise Problem("empty_completion", f"expected `{key}` to have text, got {value!r}")
    return whole_text(value, key)


def parse_json(value: Any, key: str, kind: type) -> str:
    """A list or an object of a row, or JSON of one, as JSON; "" if it is null or empty.

    Raises:
        Problem: it is no such thing.
    """
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):  # other text is refused below, as are numbers and depths too large
            value = json.loads(value) if value.strip() else None
    if _is_empty(value):
        return ""
    if not isinstance(value, kind):
        shape = "a list" if kind is list else "an object"
        raise Problem("wrong_type", f"expected `{key}` as {shape} or as JSON of one, got {name(value)}")
    return as_json(value, key)


def as_json(value: Any, key: str) -> str:
    """A value of a row as JSON; keys keep their order, since templates write them in it.

    Raises:
        Problem: it holds what JSON cannot.
    """
    try:
        return whole_text(json.dumps(value, ensure_ascii=False), key)
    except (TypeError, ValueError) as error:
        raise Problem("wrong_type", f"expected `{key}` to be JSON, got {name(value)}: {error}") from error


def whole_text(text: str, key: str) -> str:
    """The text itself; JSON can escape half of a character, which no tokenizer takes and no file can hold.

    Raises:
        Problem: it does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start : error.end])
        why = f"expected `{key}` as Unicode text, got {half} at character {error.start}: half of a surrogate pair"
        raise Problem("not_utf8", why) from None
    return text


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, or an empty text, list or object."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def name(value: Any) -> str:
    """A value for a message: its type and its start."""
    return "null" if value is None else f"{type(value).__name__} {quote(value)}"


def quote(value: Any) -> str:
    """The start of a value's `repr`."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _message(turn: Any, key: str, counts: Counter[str]) -> Message:
    if not isinstance(turn, Mapping):
        raise Problem("wrong_type", f"expected `{key}` as a message with `role` and `content`, got {name(turn)}")
    role = turn.get("role")
    content = turn.get("content")
    more = {part: turn[part] for part in TEMPLATE_KEYS if not _is_empty(turn.get(part))}
    if content is None and "tool_calls" in more:
        content = ""
    if role is None or content is None:
        raise Problem("missing_keys", f"expected `{key}` to have `role` and `content`, got {', '.join(map(str, turn))}")
    if role not in ROLES:
        raise Problem("unknown_role", f"expected the role of `{key}` to be one of {', '.join(ROLES)}, got {role!r}")
    unused = [part for part, value in turn.items() if value is not None and part not in ("role", "content", *more)]
    counts.update(f"unused_key/{part}" for part in unused if part not in TEMPLATE_KEYS)
    text = whole_text(_content_text(content, key), key)
    whole = as_json({"role": role, "content": content, **more}, key) if more or text is not content else ""
    return Message(role, _with_calls(text, more.get("tool_calls")), whole)


def _content_text(content: Any, key: str) -> str:
    """The content's text, of which the parts of a list are joined as templates join them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise Problem(
            "wrong_type", f"expected the content of `{key}` as text or as a list of text parts, got {name(content)}"
        )
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    for part, text in zip(content, texts, strict=True):
        if not isinstance(text, str):
            expected = '{"type": "text", "text": ...}'
            raise Problem("wrong_type", f"expected the parts of `{key}` as {expected}, got {name(part)}")
    return "".join(map(str, texts))


def _with_calls(text: str, calls: Any) -> str:
    """The text of a turn for judges, with each tool call as a line of JSON."""
    if not calls:
        return text
    lines = [json.dumps(call, ensure_ascii=False) for call in (calls if isinstance(calls, list | tuple) else [calls])]
    return "\n".join([text, *lines] if text else lines)
