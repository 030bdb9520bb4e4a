"""The key of a server: read from the environment when it is needed, and stored nowhere."""

from __future__ import annotations

import os
import re

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_SHORTEST_SECRET = 8
_KEY = re.compile(r"[\x21-\x7e]+")


def require_variable_name(api_key_env: str | None) -> None:
    """Raises ValueError, without showing the value, unless `api_key_env` can be the name of a variable.

    A key given by mistake in place of the name must not appear in an error, a log or a saved config. So only capitals
    are allowed, which keys of the common services do not consist of.
    """
    if api_key_env is not None and not _NAME.fullmatch(api_key_env):
        raise ValueError(
            "api_key_env must be the name of an environment variable, in capitals, such as OPENAI_API_KEY, or null for "
            "none; got something else (not shown, as it may be a key). Put the key into the variable"
        )


def read_key(api_key_env: str | None) -> str | None:
    """Reads the key; None if there is no such variable.

    Raises:
        ValueError: the variable has characters that are not allowed in a header.
    """
    key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
    if key and not _KEY.fullmatch(key):
        raise ValueError(f"${api_key_env} holds characters that no key has (spaces, line breaks or beyond ASCII)")
    return key or None


def without_key(text: str, key: str | None) -> str:
    """Replaces the key in a server's text. A very short key is a placeholder such as EMPTY, no secret, and stays."""
    return text.replace(key, "[key]") if key and len(key) >= _SHORTEST_SECRET else text
