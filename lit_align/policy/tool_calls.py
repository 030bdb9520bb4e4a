"""The arguments of tool calls: data sets have them as objects or as JSON text, templates take one of the two."""

from __future__ import annotations

import json
from typing import Any


def with_arguments(chat: list[dict[str, Any]], as_text: bool) -> list[dict[str, Any]]:
    """Converts the arguments of a chat's tool calls to objects, or to JSON text.

    Args:
        chat: turns, some with `tool_calls`.
        as_text: the form that the template takes.
    """
    if not any("tool_calls" in turn for turn in chat):
        return chat
    return [_convert_turn(turn, as_text) if "tool_calls" in turn else turn for turn in chat]


def _convert_turn(turn: dict[str, Any], as_text: bool) -> dict[str, Any]:
    return {**turn, "tool_calls": [_convert_call(call, as_text) for call in turn["tool_calls"]]}


def _convert_call(call: Any, as_text: bool) -> Any:
    if not isinstance(call, dict):
        return call
    if "function" in call:
        return {**call, "function": _convert_call(call["function"], as_text)}
    arguments = call.get("arguments")
    if as_text and isinstance(arguments, dict):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if not as_text and isinstance(arguments, str):
        return {**call, "arguments": _parse_object(arguments)}
    return call


def _parse_object(text: str) -> Any:
    """The JSON object in a text, or the text itself if it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, dict) else text
