"""A terminal: what a program leaves on the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable
from threading import Thread
from typing import Any

from tests.helpers.processes import exit_code_of

_TOKEN = re.compile(r"\x1b\[(\d*)([A-Za-z])|([\r\n])|([^\r\n\x1b]+)")


def shown_on_terminal(columns: int, run: Callable[..., Any], *args: Any) -> list[str]:
    """Runs `run(*args)` in a process of its own on a terminal, and returns the lines that are left on its screen."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 200, columns, 0, 0))
    printed: list[bytes] = []
    reader = Thread(target=_read, args=(ours, printed), daemon=True)
    reader.start()
    code = exit_code_of(_run_on, theirs, run, args)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    text = b"".join(printed).decode()
    assert code == 0, text
    return render(text, columns)


def _run_on(terminal: int, run: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.pop("COLUMNS", None)
    os.environ["TERM"] = "xterm"
    for descriptor in (1, 2):
        os.dup2(terminal, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    run(*args)
    sys.stdout.flush()


def _read(terminal: int, printed: list[bytes]) -> None:
    try:
        while chunk := os.read(terminal, 65536):
            printed.append(chunk)
    except OSError:  # the other end is closed
        return


def render(text: str, columns: int) -> list[str]:
    """The lines of a screen after `text`; a line that is wider than the screen goes on in the next."""
    screen: list[str] = [""]
    row = column = 0
    for count, code, move, written in _TOKEN.findall(text):
        if code == "A":
            row = max(0, row - int(count or 1))
        elif code == "K":
            screen[row] = screen[row][:column]
        elif move == "\r":
            column = 0
        elif move == "\n":
            row += 1
        for character in written:
            if column == columns:
                row, column = row + 1, 0
            screen += [""] * (row + 1 - len(screen))
            line = screen[row].ljust(column)
            screen[row] = line[:column] + character + line[column + 1 :]
            column += 1
        screen += [""] * (row + 1 - len(screen))
    return [line.rstrip() for line in screen]
