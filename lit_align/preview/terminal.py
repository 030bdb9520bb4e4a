"""Text for a terminal: styled, wrapped, and unable to drive it."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

BOLD = "1"
DIM = "2"
REVERSE = "7"
RED = "31"
GREEN = "32"
YELLOW = "33"
CYAN = "36"
MARK = f"{DIM};{YELLOW}"
"""Of what stands for a character that cannot be shown."""
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@dataclass(frozen=True)
class Cell:
    """What is shown for one character.

    Args:
        shown: one or more characters, none of which drives a terminal.
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
    """What is known of the place where text is printed to.

    Args:
        colour: whether it shows styles.
        width: in columns.
        encoding: of its characters.
    """

    def __init__(self, colour: bool, width: int = 80, encoding: str = "utf-8") -> None:
        self.colour = colour
        self.width = max(width, 40)
        self.encoding = encoding

    @classmethod
    def of(cls, stream: IO[str]) -> Terminal:
        """Colour where the stream is a terminal and `NO_COLOR` is not set, or `FORCE_COLOR` is."""
        forced = os.environ.get("FORCE_COLOR")
        refused = os.environ.get("NO_COLOR")
        colour = not refused and (bool(forced) or (stream.isatty() and os.environ.get("TERM") != "dumb"))
        return cls(colour, shutil.get_terminal_size((100, 24)).columns, getattr(stream, "encoding", None) or "utf-8")

    def styled(self, text: str, style: str) -> str:
        """The text in a style, where there are styles."""
        text = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return f"\x1b[{style}m{text}\x1b[0m" if self.colour and style and text else text

    def lines(self, cells: Sequence[Cell], mark: str, style: str = "") -> list[str]:
        """The cells in lines that fit the width, each behind a mark, broken at blanks where there are any."""
        room = self.width - len(mark)
        return [self.styled(mark, style) + self._line(line) for line in _wrapped(cells, room)]

    def _line(self, cells: Iterable[Cell]) -> str:
        parts: list[list[str]] = []  # neighbours of one style are written as one
        for cell in cells:
            if parts and parts[-1][0] == cell.style:
                parts[-1][1] += cell.shown
            else:
                parts.append([cell.style, cell.shown])
        return "".join(self.styled(text, style) for style, text in parts)


def cells(text: str, style: str = "") -> Iterator[Cell]:
    """Each character of a text as it can be shown: control, bidi and other unseen characters by their numbers.

    Blanks at either end of the text and of its lines, which nobody would see, are dots.
    """
    for at, character in enumerate(text):
        if character == "\n":
            yield Cell("↵", MARK, ends_line=True)
        elif character == " ":
            edge = at in (0, len(text) - 1) or text[at + 1 : at + 2] == "\n"
            yield Cell("·", MARK) if edge else Cell(" ", style)
        elif character.isprintable() and unicodedata.category(character) not in _UNSEEN:
            yield Cell(character, style)
        else:
            yield Cell(character.encode("unicode_escape").decode("ascii"), MARK)


def plain(text: str) -> str:
    """A text of the data on one line of a message, with nothing in it that drives a terminal."""
    return "".join(cell.shown for cell in cells(text))


def _wrapped(cells: Sequence[Cell], room: int) -> Iterator[list[Cell]]:
    line: list[Cell] = []
    used = 0
    for cell in cells:
        if used + cell.width > room and line:
            full, line = _broken(line)
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


def _broken(line: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """A full line in two, behind its last blank; without one all of it is the first part."""
    blanks = [at for at, cell in enumerate(line) if cell.shown == " "]
    end = blanks[-1] + 1 if blanks else len(line)
    return line[:end], line[end:]


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
