"""Text of models, data and servers without the characters that act on a terminal or turn the text around them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable

_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Categories of control, bidi and other invisible characters, of surrogates and of what is no character."""
_KEPT = "\n\t\u200c\u200d"  # the last two join letters of some scripts, and parts of emoji


def escape(text: str) -> str:
    r"""Shows control, bidi and other invisible characters by their numbers.

    Line breaks, tabs and joiners stay.

    Example:
        >>> escape("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    return _replace(text.replace("\r\n", "\n"), by_number)


def escape_line(text: str) -> str:
    r"""As :func:`escape`, in one line: blanks, tabs and line breaks become single blanks.

    Example:
        >>> escape_line("a\n\tb")
        'a b'
    """
    return escape(" ".join(text.split()))


def escape_json(text: str) -> str:
    r"""JSON that says the same without such characters outside of ASCII, where `json.dumps` leaves them.

    Example:
        >>> escape_json('{"a": "\u202e"}')
        '{"a": "\\u202e"}'
    """
    return _replace(text, lambda character: json.dumps(character)[1:-1])


def is_unseen(character: str) -> bool:
    """Whether a character is invisible, or does something to the text or to a terminal."""
    return unicodedata.category(character) in _UNSEEN


def by_number(character: str) -> str:
    """A character's number, as Python writes it."""
    return character.encode("unicode_escape").decode("ascii")


def _replace(text: str, written: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(written(sign) if sign not in _KEPT and is_unseen(sign) else sign for sign in text)
