"""Lines on the terminal."""

from __future__ import annotations

import sys

import pytest

from lit_align.console import note

LINE = "Reference log-probs: all pairs are in /a/folder-with-a/name-that-is/wider-than-the-terminal itself"


def test_a_terminal_gets_long_lines_broken_at_blanks_and_a_file_gets_them_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note(LINE)
    assert capsys.readouterr().out == f"{LINE}\n"
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    note(f"{LINE}\n  a table  stays")
    assert capsys.readouterr().out.splitlines() == [
        "Reference log-probs: all pairs are in",
        "  /a/folder-with-a/name-that-is/wider-than-the-terminal",
        "  itself",
        "  a table  stays",
    ]
