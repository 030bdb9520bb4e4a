"""The command reference: what `lit-align --help` and each command's `--help` print."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from unittest import mock

from lit_align.cli import help as overview
from lit_align.cli import main

FULL = "fit"
"""The command whose help is shown whole; the others of its family show what is their own."""

SHORT = 60
"""Lines of a help text that need no folding."""


def pages() -> Iterator[tuple[str, str]]:
    """The page of the commands."""
    shared = set(_sections(_help_of(FULL)))
    text = [f"# Commands\n\n```text\n{_printed(['--help']).strip()}\n```\n"]
    for name, what in overview.COMMANDS.items():
        text.append(f"## {name}\n\n{what[:1].upper()}{what[1:]}.\n\n{_block(name, shared)}\n")
    yield "reference/commands.md", "\n".join(text)


def _block(name: str, shared: set[str]) -> str:
    sections = _sections(_help_of(name))
    kept = sections if name == FULL else [section for section in sections if section not in shared]
    if len(kept) < len(sections):
        kept.append("and the options of a run (model, data, trainer), as `lit-align fit --help` lists them\n")
    body = "\n\n".join(section.strip("\n") for section in kept)
    block = f"```text\n{body}\n```"
    if body.count("\n") <= SHORT:
        return block
    folded = block.replace("\n", "\n    ")
    return f'??? note "`lit-align {name} --help`"\n\n    {folded}'


def _help_of(name: str) -> str:
    return _printed([name, "--help"])


def _printed(words: list[str]) -> str:
    """What a command prints on 80 columns."""
    out = io.StringIO()
    narrow = mock.patch.dict(os.environ, {"COLUMNS": "80"})
    with narrow, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(words)
    return out.getvalue()


def _sections(text: str) -> list[str]:
    """The parts of a help text: usage, description and each group of options."""
    text = re.sub(r"\Ausage:.*?\n\n", _short_usage, text, flags=re.DOTALL)
    return [part for part in re.split(r"\n\n(?=\S)", text) if part.strip()]


def _short_usage(match: re.Match[str]) -> str:
    """The usage line, without the list of all options that follow anyway."""
    lines = match[0].strip().splitlines()
    if len(lines) < 12:
        return match[0]
    return "usage: " + " ".join(lines[0].split()[1:4]) + " [--KEY VALUE ...]\n\n"
