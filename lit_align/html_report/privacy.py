"""What a page that people pass on must not hold: home folders, keys, and characters that are no text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
_HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s'\"]+|(?<![\w.])/root(?=/|\b)")
_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET = re.compile(r"(^|[_\-.])(api_?key|token|password|passwd|secret|credentials?|authorization)s?$", re.IGNORECASE)
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of the text behind them."""


def without_private(value: Any, key: str = "") -> Any:
    """Plain data without home folders, passwords in addresses, and the values of keys that name a secret."""
    if isinstance(value, Mapping):
        return {name: without_private(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_private(item, key) for item in value]
    if value is not None and _SECRET.search(key) and not isinstance(value, bool | int | float):
        return HIDDEN
    return _IN_URL.sub("", _HOME.sub("~", value)) if isinstance(value, str) else value


def as_text(value: str) -> str:
    """A text with control characters, and those that turn its direction, shown by their numbers."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(map(_shown, value))


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    if character in _TURNING or unicodedata.category(character) in ("Cc", "Cs"):
        return character.encode("unicode_escape").decode("ascii")
    return character
