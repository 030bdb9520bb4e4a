"""A terminal, a pipe or a disk that fails ends the printing, not the run; so does an encoding without a character."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lit_align import AlignmentTrainer
from lit_align.cli import main
from lit_align.console import note
from tests.helpers.processes import exit_code_of

STEPS = 3


class Talking(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        note("a line → of a step " * 100)
        return super().training_step(batch, batch_idx)


def open_output(target: Path | None, encoding: str) -> None:
    """Makes a file, or a pipe that nobody reads, this process's standard output."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer if target is None else os.open(target, os.O_WRONLY | os.O_CREAT), 1)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = (Path.cwd() / "stderr").open("w")


def fit(folder: Path, target: Path | None, encoding: str) -> None:
    os.chdir(folder)
    open_output(target, encoding)
    trainer = AlignmentTrainer(default_root_dir="run", max_steps=STEPS, accelerator="cpu", logger=False)
    trainer.fit(Talking(), datamodule=BoringDataModule())
    (folder / "steps").write_text(str(trainer.global_step))
    sys.stdout.flush()


def show_help(folder: Path) -> None:
    os.chdir(folder)
    open_output(None, "utf-8")
    sys.exit(main(["--help"]))


def test_a_pipe_that_closes_does_not_end_a_fit(tmp_path: Path) -> None:
    assert exit_code_of(fit, tmp_path, None, "utf-8") == 0
    assert (tmp_path / "steps").read_text() == str(STEPS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has it")
def test_a_full_disk_behind_the_output_does_not_end_a_fit(tmp_path: Path) -> None:
    assert exit_code_of(fit, tmp_path, Path("/dev/full"), "utf-8") == 0
    assert (tmp_path / "steps").read_text() == str(STEPS)
    assert (tmp_path / "stderr").read_text().count("nothing more is printed") == 1


def test_a_terminal_of_ascii_gets_question_marks(tmp_path: Path) -> None:
    assert exit_code_of(fit, tmp_path, tmp_path / "output", "ascii") == 0
    assert (tmp_path / "steps").read_text() == str(STEPS)
    assert "a line ? of a step" in (tmp_path / "output").read_text()


def test_help_into_a_pipe_that_closes_ends_without_a_word(tmp_path: Path) -> None:
    assert exit_code_of(show_help, tmp_path) == 0
    assert (tmp_path / "stderr").read_text() == ""
