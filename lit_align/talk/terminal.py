"""The chat on a terminal, or between two pipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO

from lit_align.escape import escape
from lit_align.preview.terminal import BOLD, CYAN, DIM, GREEN, Terminal
from lit_align.talk.chat import COMMANDS, START, Chat
from lit_align.talk.text import Wrapped

_PROMPT = "you> "
_WIDTH = max(map(len, COMMANDS))


def run_chat(chat: Chat, title: str, source: IO[str], target: IO[str]) -> None:
    """Reads questions and writes answers until the source ends.

    On a terminal it says who speaks, and hints. Between pipes the target gets answers alone, one after the other, and
    hints go to standard error.

    Args:
        chat: the chat.
        title: what is talked to.
        source: of the questions, one a line.
        target: of the answers.
    """
    screen = _Screen(target, source.isatty() and target.isatty())
    screen.hint(f"{escape(title)}\n{_help()}\nCtrl-C stops an answer.\n", only_on_terminal=True)
    for line in _lines(source, screen):
        question = line.strip()
        if question == "/exit":
            return
        with screen.errors_as_hints():
            _react(chat, question, screen)


def _react(chat: Chat, line: str, screen: _Screen) -> None:
    word = line.split(maxsplit=1)[0] if line else ""
    if word == "/base":
        speaker = chat.switch()
        which = "The model as the run started answers" if speaker == START else "The trained model answers"
        screen.hint(f"{which} now; /again repeats the last question.")
    elif word == "/reset":
        chat.reset()
        screen.hint("The chat begins anew.")
    elif word == "/help":
        screen.hint(_help())
    elif word == "/again":
        answered = screen.answer(chat, chat.again)
        if answered is None:
            screen.hint("There is no question to repeat yet.")
    elif word.startswith("/"):
        screen.hint(f"There is no {escape(word)}.\n{_help()}")
    elif line:
        screen.answer(chat, lambda emit: chat.ask(line, emit))


def _help() -> str:
    return "\n".join(f"  {name:<{_WIDTH}}  {text}" for name, text in COMMANDS.items())


def _lines(source: IO[str], screen: _Screen) -> Iterator[str]:
    """The user's lines; a Ctrl-C at the prompt only begins a new one."""
    if not screen.interactive:
        yield from source
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` its history and editing
    while True:
        try:
            yield input(_PROMPT)
        except KeyboardInterrupt:
            screen.hint("\n(/exit or Ctrl-D ends)")
        except EOFError:
            screen.end()
            return


class _Screen:
    """Where answers and hints are written."""

    def __init__(self, target: IO[str], interactive: bool) -> None:
        self._target = target
        self._terminal = Terminal.of(target)
        self.interactive = interactive

    def hint(self, text: str, only_on_terminal: bool = False) -> None:
        if self.interactive:
            print(self._terminal.styled(text, DIM), file=self._target, flush=True)
        elif not only_on_terminal:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        print(file=self._target, flush=True)

    def answer(self, chat: Chat, ask: Callable[[Callable[[str], object]], str | None]) -> str | None:
        """Writes an answer behind the name of who gives it, as it comes."""
        if not self.interactive:
            try:
                return ask(lambda text: self._write(escape(text)))
            finally:
                self.end()
        label = f"{chat.speaker}> "
        self._write(self._terminal.styled(label, f"{BOLD};{CYAN if chat.speaker == START else GREEN}"))
        lines = Wrapped(self._write, self._terminal.width, len(label))
        try:
            return ask(lambda text: lines.add(escape(text)))
        finally:
            lines.end()
            self._write("\n\n")

    def _write(self, text: str) -> None:
        self._target.write(text)
        self._target.flush()

    def errors_as_hints(self) -> _ErrorsAsHints:
        return _ErrorsAsHints(self)


class _ErrorsAsHints:
    """Says what went wrong with a turn, and lets the chat go on."""

    def __init__(self, screen: _Screen) -> None:
        self._screen = screen

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ValueError | OSError) and not isinstance(error, BrokenPipeError):
            self._screen.hint(escape(str(error)))
            return True
        return False
