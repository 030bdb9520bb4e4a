"""A wrong input gets an answer in a sentence or two that names what is wrong and where, never a bare traceback."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_align.cli import main
from lit_align.cli.quiet import LOGGERS
from tests.helpers import bad_inputs
from tests.helpers.bad_inputs import BadInput

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Undoes what `main` does to a process that it expects to have to itself."""
    path = list(sys.path)
    shown = warnings.formatwarning
    with warnings.catch_warnings():
        yield
    warnings.formatwarning = shown
    sys.path[:] = path
    sys.modules.pop("rules", None)
    for name in LOGGERS:
        logging.getLogger(name).filters.clear()


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which a fit would run."""
    bad_inputs.write_run(tmp_path, tiny_model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, bad: BadInput, model: Path) -> None:
    for name, content in bad.files.items():
        if bad.changes_model:
            shutil.copytree(model, folder / name)
        if callable(content):
            content(folder / name)
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("bad", bad_inputs.ALL, ids=[bad.name for bad in bad_inputs.ALL])
def test_a_bad_input_is_answered_in_a_sentence(
    bad: BadInput, folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, bad, tiny_model)
    try:
        code = main(bad.command())
    except SystemExit as end:  # argparse's own, of wrong words
        code = end.code  # type: ignore[assignment]
    answer = capsys.readouterr().err
    assert code == bad.code, answer
    assert "Traceback" not in answer
    assert "error: " in answer and len(answer) < 1000
    for part in bad.says:
        assert part.casefold() in answer.casefold()


def test_there_are_many_bad_inputs() -> None:
    assert len({bad.name for bad in bad_inputs.ALL}) == len(bad_inputs.ALL) >= 150
