"""The words of a text in any language, with nothing but the standard library."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_APOSTROPHE = re.compile(r"(?<=\w)['\u2019](?=\w)")
_LETTER_APOSTROPHE = "\u02bc"  # a letter to Unicode, so that "don't" stays one word
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals of Han
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3031, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # narrow Katakana
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)
"""Scripts that are written without spaces between words."""


class _Spacing(dict[int, str]):
    """Maps each character to a replacement by which `str.split` separates words; filled on demand."""

    def __missing__(self, code: int) -> str:
        replacement = self[code] = _space(code)
        return replacement


def _space(code: int) -> str:
    character = chr(code)
    kind = unicodedata.category(character)
    if 0xFE00 <= code <= 0xFE0F or kind == "Cf":  # variation selectors and joiners are not seen
        return ""
    if kind[0] in "ZC":
        return " "
    if kind[0] in "LMN" and not any(low <= code <= high for low, high in _UNSPACED):
        return character
    return f" {character} "


_SPACING = _Spacing()


@lru_cache(maxsize=256)
def words(text: str) -> tuple[str, ...]:
    """Splits a text into its words, case folded.

    A word is a run of letters, marks and digits ("don't" is one). Any other visible character is a word by itself
    (punctuation, symbols), and so is each character of a script without spaces between words (Han, Kana, Thai, Lao,
    Khmer, Myanmar): there n-grams of words are n-grams of characters.

    Example:
        >>> words("Don't panic: 42!")
        ('donʼt', 'panic', ':', '42', '!')
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    return tuple(_APOSTROPHE.sub(_LETTER_APOSTROPHE, folded).translate(_SPACING).split())
