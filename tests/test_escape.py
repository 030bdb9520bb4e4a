"""Texts of models, data and servers do nothing to a terminal, a table or a message."""

from __future__ import annotations

import json
import warnings

import pytest

from lit_align.cli.quiet import quiet
from lit_align.console import note
from lit_align.escape import escape, escape_json, escape_line
from lit_align.markdown import markdown_table
from lit_align.remote.exchange import _shorten
from lit_align.rows.loading import load_records
from lit_align.rows.reading import BadRow

EVIL = "a\x1b]0;title\x07\x9b2J\u202etxt.exe\u2066\u200f\x7f\ud83d"
HARMLESS = "a\\x1b]0;title\\x07\\x9b2J\\u202etxt.exe\\u2066\\u200f\\x7f\\ud83d"
SCRIPTS = "می\u200cخواهم 👩\u200d🌾 日本 é"


def test_what_acts_on_a_terminal_is_shown_by_its_number_and_scripts_stay() -> None:
    assert escape(EVIL) == HARMLESS
    assert escape(f"{SCRIPTS}\r\n\tb") == f"{SCRIPTS}\n\tb"
    assert escape_line(f" {EVIL}\n b") == f"{HARMLESS} b"


def test_json_for_a_terminal_says_the_same() -> None:
    value = {"prompt": EVIL.replace("\ud83d", ""), "row": f"{SCRIPTS}\U000e0041"}
    text = escape_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert escape(text) == text and SCRIPTS in text


def test_lines_warnings_and_tables_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    note(EVIL)
    assert capsys.readouterr().out == f"{HARMLESS}\n"
    with warnings.catch_warnings():
        shown = warnings.formatwarning
        quiet()
        assert warnings.formatwarning(EVIL, UserWarning, "f.py", 1) == f"warning: {HARMLESS}\n"
        warnings.formatwarning = shown
    assert markdown_table([["a"], [f"{EVIL}|\nb"]]).splitlines()[-1] == f"| {HARMLESS}\\|<br>b |"


def test_row_keys_and_server_texts_are_harmless_in_errors() -> None:
    with pytest.raises(BadRow) as error:
        load_records([{f"prompt{EVIL}": "x"}])
    assert escape(str(error.value)) == str(error.value)
    assert _shorten(f"{EVIL}\nb") == f"{HARMLESS} b"
