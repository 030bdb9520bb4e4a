"""The key of a server: read from the environment where it is used, and kept nowhere."""

from __future__ import annotations

import os
import re

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_SHORTEST = 8
_KEY = re.compile(r"[\x21-\x7e]+")


def require_variable_name(api_key_env: str | None) -> None:
    """Raises ValueError where `api_key_env` cannot be the name of a variable; its value is not shown.

    Who gives the key itself by mistake must not find it in an error, a log or a saved config. So only capitals
    pass, which keys of the common services are not made of.
    """
    if api_key_env is not None and not _NAME.fullmatch(api_key_env):
        raise ValueError(
            "api_key_env must be the name of an environment variable, in capitals, such as OPENAI_API_KEY, or null for "
            "none; got something else (not shown, as it may be a key). Put the key into the variable"
        )


def read_key(api_key_env: str | None) -> str | None:
    """The key; None where there is no such variable.

    Raises:
        ValueError: the variable holds what no header may hold.
    """
    key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
    if key and not _KEY.fullmatch(key):
        raise ValueError(f"${api_key_env} holds characters that no key has (spaces, line breaks or beyond ASCII)")
    return key or None


def without_key(text: str, key: str | None) -> str:
    """Text of a server, with the key blotted out; a shorter one is a filler such as EMPTY, and no secret."""
    return text.replace(key, "[key]") if key and len(key) >= _SHORTEST else text
