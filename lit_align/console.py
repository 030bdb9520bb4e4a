"""Prints lines on the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


def note(text: str) -> None:
    """Prints lines above a running progress bar; on a terminal, lines that are too wide are broken at blanks."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(line if len(line) <= width else _break_line(line, width) for line in text.split("\n"))
    Tqdm.write(text, file=sys.stdout)


def _break_line(line: str, width: int) -> str:
    """Breaks a line at a terminal's width; words that a reader may copy, such as a path, stay whole."""
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
