"""Lines on the terminal."""

from __future__ import annotations

import sys

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


def note(text: str) -> None:
    """Prints a line above whatever bar is running."""
    Tqdm.write(text, file=sys.stdout)
