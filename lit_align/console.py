"""Prints lines on the terminal, and shows how far something is: as a bar, or in plain lines where nobody looks on."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from typing import Any, Literal, Protocol

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lit_align.escape import escape
from lit_align.run_parts import process_rank

PROGRESS_VARIABLE = "LIT_ALIGN_PROGRESS"
ProgressStyle = Literal["bar", "plain", "off"]
_STYLES: dict[str, ProgressStyle] = {"bar": "bar", "plain": "plain", "off": "off"}


def progress_style() -> ProgressStyle:
    """How progress is shown: as LIT_ALIGN_PROGRESS says, by default bars on a terminal or in a notebook, else lines.

    Raises:
        ValueError: the variable is none of auto, bar, plain and off.
    """
    name = os.environ.get(PROGRESS_VARIABLE, "").strip().lower() or "auto"
    if name == "auto":
        return "bar" if _is_watched() else "plain"
    if name not in _STYLES:
        raise ValueError(f"{PROGRESS_VARIABLE} is one of auto, bar, plain and off, but it is {name!r}")
    return _STYLES[name]


def _is_watched() -> bool:
    if type(sys.stdout).__module__.startswith("ipykernel"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def note(text: str) -> None:
    """Prints lines above a running progress bar, on the first process of a run only.

    Characters that would act on a terminal are shown by their numbers. There, lines that are too wide are broken at
    blanks.
    """
    if process_rank() != 0:
        return
    text = escape(text)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(line if len(line) <= width else _break_line(line, width) for line in text.split("\n"))
    Tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()  # a file or a pipe would keep it back for minutes


def _break_line(line: str, width: int) -> str:
    """Breaks a line at a terminal's width; words that a reader may copy, such as a path, stay whole."""
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def format_duration(seconds: float) -> str:
    """Formats seconds for people.

    Example:
        >>> format_duration(7.4), format_duration(252), format_duration(7600)
        ('7 s', '4 min 12 s', '2 h 06 min')
    """
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Activity(Protocol):
    """Something that takes a while, shown with how far it is."""

    total: float | None

    def update(self, n: float | None = 1, /) -> object:
        """Counts what was done since the last call."""

    def __enter__(self) -> Activity: ...

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> object: ...


def show_activity(
    total: int | None, label: str, unit: str, shown: bool = True, style: ProgressStyle | None = None
) -> Activity:
    """Shows how far something is while the block runs; nothing of what takes no time.

    A bar with a rate that vanishes at the end, or a line every half minute; the first process of a run only.

    Args:
        total: how much there is to do; None if that is not known.
        label: what is done.
        unit: what is counted, in the plural.
        shown: False shows nothing.
        style: None is what :func:`progress_style` says.
    """
    style = style or progress_style()
    if not shown or process_rank() != 0:
        style = "off"
    if style == "plain":
        return ActivityLines(total, label, unit)
    return Tqdm(
        total=total, desc=label, unit=f" {unit}", leave=False, delay=0.5, dynamic_ncols=True, file=sys.stdout,
        disable=style == "off",
    )  # fmt: skip


class ActivityLines:
    """An :class:`Activity` in plain lines.

    Args:
        total: how much there is to do; None if that is not known.
        label: what is done.
        unit: what is counted, in the plural.
        every: seconds between two lines, and before the first.
    """

    def __init__(self, total: float | None, label: str, unit: str, every: float = 30.0) -> None:
        self.total = total
        self.every = every
        self._label = label
        self._unit = unit
        self._done = 0.0
        self._began = self._told = time.monotonic()

    def update(self, n: float | None = 1, /) -> None:
        """See :class:`Activity`."""
        self._done += n or 0
        now = time.monotonic()
        if now - self._told >= self.every:
            self._told = now
            note(self._describe(now - self._began))

    def _describe(self, seconds: float) -> str:
        if not self.total:
            return f"{self._label}: {self._done:g} {self._unit} in {format_duration(seconds)}"
        line = f"{self._label}: {self._done:g} of {self.total:g} {self._unit}"
        if not 0 < self._done < self.total:
            return line
        return f"{line}, {format_duration(seconds / self._done * (self.total - self._done))} left"

    def __enter__(self) -> ActivityLines:
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves no line: what was done, the next line tells."""
