"""A model's text for a terminal, as it comes."""

from __future__ import annotations

from collections.abc import Callable


class Wrapped:
    """Writes pieces of a text so that no word is broken at the edge of a terminal.

    A word is held back until its end has come.

    Args:
        write: gets the text.
        width: columns of the terminal.
        column: the column at which the text begins.
    """

    def __init__(self, write: Callable[[str], object], width: int, column: int) -> None:
        self._write = write
        self._width = width
        self._column = column
        self._word = ""

    def add(self, piece: str) -> None:
        """Adds a piece of the text, without control characters but line breaks and tabs."""
        for character in piece:
            if not character.isspace():
                self._word += character
                continue
            self.end()
            self._write(character)
            self._column = 0 if character == "\n" else self._column + 1

    def end(self) -> None:
        """Writes the word that is held back."""
        if self._column and self._column + len(self._word) >= self._width:
            self._write("\n")
            self._column = 0
        self._write(self._word)
        self._column += len(self._word)
        self._word = ""
