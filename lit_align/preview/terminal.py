"""Text for a terminal: styled, wrapped, and without control characters."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from lit_align.escape import by_number, is_unseen

BOLD = "1"
DIM = "2"
REVERSE = "7"
RED = "31"
GREEN = "32"
YELLOW = "33"
CYAN = "36"
MARK = f"{DIM};{YELLOW}"
"""The style of a sign for a character that cannot be shown."""


@dataclass(frozen=True)
class Cell:
    """The form in which a character is shown.

    Args:
        shown: one or more characters, none of which is a control character.
        style: SGR numbers, separated by semicolons; empty for none.
        ends_line: whether a new line follows.
    """

    shown: str
    style: str = ""
    ends_line: bool = False

    @property
    def width(self) -> int:
        """Columns on the screen."""
        return sum(_columns(character) for character in self.shown)


class Terminal:
    """The abilities of the terminal, or file, that text is printed to.

    Args:
        colour: whether it shows styles.
        width: its width in columns.
        encoding: the encoding of its characters.
    """

    def __init__(self, colour: bool, width: int = 80, encoding: str = "utf-8") -> None:
        self.colour = colour
        self.width = max(width, 40)
        self.encoding = encoding

    @classmethod
    def of(cls, stream: IO[str]) -> Terminal:
        """Reads the abilities of a stream. `NO_COLOR` switches colours off, `FORCE_COLOR` on for a file."""
        forced = os.environ.get("FORCE_COLOR")
        refused = os.environ.get("NO_COLOR")
        colour = not refused and (bool(forced) or (stream.isatty() and os.environ.get("TERM") != "dumb"))
        return cls(colour, shutil.get_terminal_size((100, 24)).columns, getattr(stream, "encoding", None) or "utf-8")

    def styled(self, text: str, style: str) -> str:
        """Puts a text into a style, if the terminal shows styles."""
        text = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return f"\x1b[{style}m{text}\x1b[0m" if self.colour and style and text else text

    def lines(self, cells: Sequence[Cell], mark: str, style: str = "") -> list[str]:
        """Lays out cells in lines that fit the width, each behind a mark, broken at blanks if there are any."""
        room = self.width - len(mark)
        return [self.styled(mark, style) + self._line(line) for line in _wrap(cells, room)]

    def _line(self, cells: Iterable[Cell]) -> str:
        parts: list[list[str]] = []  # neighbours of one style are written as one
        for cell in cells:
            if parts and parts[-1][0] == cell.style:
                parts[-1][1] += cell.shown
            else:
                parts.append([cell.style, cell.shown])
        return "".join(self.styled(text, style) for style, text in parts)


def cells(text: str, style: str = "") -> Iterator[Cell]:
    """Yields each character of a text in a form that can be shown.

    Control, bidi and other invisible characters are shown by their numbers. Blanks at the ends of the text and of its
    lines, which nobody would see, are dots.
    """
    for position, character in enumerate(text):
        if character == "\n":
            yield Cell("↵", MARK, ends_line=True)
        elif character == " ":
            edge = position in (0, len(text) - 1) or text[position + 1 : position + 2] == "\n"
            yield Cell("·", MARK) if edge else Cell(" ", style)
        elif character.isprintable() and not is_unseen(character):
            yield Cell(character, style)
        else:
            yield Cell(by_number(character), MARK)


def plain(text: str) -> str:
    """Converts a text of the data to a single line for a message, without control characters."""
    return "".join(cell.shown for cell in cells(text))


def _wrap(cells: Sequence[Cell], room: int) -> Iterator[list[Cell]]:
    line: list[Cell] = []
    used = 0
    for cell in cells:
        if used + cell.width > room and line:
            full, line = _break_line(line)
            yield full
            used = sum(kept.width for kept in line)
        line.append(cell)
        used += cell.width
        if cell.ends_line:
            yield line
            line = []
            used = 0
    if line:
        yield line


def _break_line(line: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Breaks a full line in two behind its last blank; without a blank all of it is the first part."""
    blanks = [position for position, cell in enumerate(line) if cell.shown == " "]
    end = blanks[-1] + 1 if blanks else len(line)
    return line[:end], line[end:]


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
