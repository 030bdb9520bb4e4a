"""Standard output and error that end no run, whatever becomes of the terminal, the pipe or the disk behind them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def steady_output() -> Iterator[None]:
    """Keeps the terminal from ending what runs in the block, such as hours of training.

    A pipe that closes (`| head`), a full disk or a terminal that is gone end the printing and not the run; a character
    that a terminal's encoding lacks becomes a question mark.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_make_steady, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _make_steady(stream: TextIO) -> Any:
    if stream is None or isinstance(stream, SteadyStream):
        return stream
    return SteadyStream(stream)


class SteadyStream:
    """A text stream whose first failure is its last: what is written after it goes nowhere.

    Args:
        stream: such as `sys.stdout`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Writes, or does not."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flushes, or does not."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Turns the stream's file to where all is swallowed, also what is in buffers, which an exit would flush."""
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()
        if not isinstance(error, BrokenPipeError) and sys.stderr is not self:
            print(f"warning: nothing more is printed ({error}); the run goes on", file=sys.stderr)
