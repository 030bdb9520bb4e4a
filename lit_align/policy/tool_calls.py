"""The arguments of tool calls: data sets have them as objects or as JSON text, templates take one of the two."""

from __future__ import annotations

import json
from typing import Any


def with_arguments(chat: list[dict[str, Any]], as_text: bool) -> list[dict[str, Any]]:
    """The chat with the arguments of its tool calls as objects, or all as JSON text.

    Args:
        chat: turns, some with `tool_calls`.
        as_text: the form that the template takes.
    """
    if not any("tool_calls" in turn for turn in chat):
        return chat
    return [
        {**turn, "tool_calls": [_call(call, as_text) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in chat
    ]


def _call(call: Any, as_text: bool) -> Any:
    if not isinstance(call, dict):
        return call
    if "function" in call:
        return {**call, "function": _call(call["function"], as_text)}
    arguments = call.get("arguments")
    if as_text and isinstance(arguments, dict):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if not as_text and isinstance(arguments, str):
        return {**call, "arguments": _object_or_text(arguments)}
    return call


def _object_or_text(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, dict) else text
