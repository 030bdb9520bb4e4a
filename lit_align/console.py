"""Lines on the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


def note(text: str) -> None:
    """Prints lines above whatever bar is running; a terminal gets those that are too wide for it broken at a blank."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(line if len(line) <= width else _broken(line, width) for line in text.split("\n"))
    Tqdm.write(text, file=sys.stdout)


def _broken(line: str, width: int) -> str:
    """The line at a terminal's width; what a reader may copy, such as a path, stays whole."""
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
