"""What a page that people pass on must not hold: home folders and keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
_HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s'\"]+|(?<![\w.])/root(?=/|\b)")
_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET = re.compile(r"(^|[_\-.])(api_?key|token|password|passwd|secret|credentials?|authorization)s?$", re.IGNORECASE)


def without_private(value: Any, key: str = "") -> Any:
    """Plain data without home folders, passwords in addresses, and the values of keys that name a secret."""
    if isinstance(value, Mapping):
        return {name: without_private(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_private(item, key) for item in value]
    if value is not None and _SECRET.search(key) and not isinstance(value, bool | int | float):
        return HIDDEN
    return _IN_URL.sub("", _HOME.sub("~", value)) if isinstance(value, str) else value
