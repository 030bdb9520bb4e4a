"""What is seen of a fit while it runs: on a terminal, and in a file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar

from lit_align.boundary import BoundaryCallback
from lit_align.boundary.budget import expected_seconds
from lit_align.boundary.record import readable_in_two
from lit_align.clock import CLOCK
from lit_align.console import ActivityLines, format_duration, note, progress_style, show_activity
from lit_align.progress import AlignmentProgressBar, PlainProgress
from lit_align.progress.status import TimeLeft
from lit_align.report import WinRateCallback
from lit_align.trainer import AlignmentTrainer
from tests.helpers.boundary_fakes import FakeData, FakeModule, decision
from tests.helpers.terminal import render, shown_on_terminal

RISING = [0.1] * 4 + [0.9] * 100


class LoggingModule(FakeModule):
    """Logs what a policy's module logs; its margin is as wide as it gets."""

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        values = {"loss": 0.6931, "rewards/accuracies": 2 / 3, "rewards/margins": -0.12345}
        self.log_dict(values, on_step=True)
        return super().training_step(batch, index)


def fit(folder: Path, steps: int, every: int, *callbacks: Any, prompts: int = 40) -> None:
    boundary = BoundaryCallback(every_n_steps=every, max_prompts=30)
    trainer = AlignmentTrainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=[boundary, *callbacks],
    )
    data = FakeData(RISING, prompts)
    data.run = SimpleNamespace(overfits=False)  # type: ignore[attr-defined]
    trainer.fit(LoggingModule(), datamodule=data)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_two_lines_of_progress_and_two_for_each_decision(tmp_path: Path, columns: int) -> None:
    screen = shown_on_terminal(columns, fit, tmp_path, 12, 4)
    assert max(map(len, screen)) <= columns
    at_switch = next(number for number, line in enumerate(screen) if line.startswith("step 4 | "))
    assert screen[at_switch].startswith("step 4 | fine-tuning, 100 % on-policy | score 0.9")
    assert screen[at_switch + 1].startswith("  crossed 0.5: from injection to fine-tuning (0 s")
    assert screen[at_switch + 2].startswith("step 8 | fine-tuning"), "no line but these two"
    steps = next(number for number, line in enumerate(screen) if line.startswith("12/12 "))
    assert " score 0.9" in screen[steps] and screen[steps].endswith("s a step, 0 s left")
    assert screen[steps + 1] == "fine-tuning, 100 % on-policy | loss 0.693 acc 0.667 margin -0.123"
    assert sum("a step" in line for line in screen) == 1, "nothing of earlier lines is left"


def test_a_decision_of_a_long_run_fits_two_lines_of_80_columns() -> None:
    crossed, measured = "crossed 0.5: from injection to fine-tuning, undecided", decision(1000, 0.49, "fine_tuning", "")
    assert measured.result is not None
    result = replace(measured.result, prompts=2000, seconds=114.0, stopped="budget")
    lines = readable_in_two(replace(measured, result=result, reason=crossed)).splitlines()
    assert lines == [
        "step 1000 | fine-tuning, 100 % on-policy | score 0.49 [0.44, 0.54], 2000 prompts",
        "  crossed 0.5: from injection to fine-tuning, undecided (114 s, max_prompts)",
    ]
    assert max(map(len, lines)) <= 80


def test_a_file_gets_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 40, 20)
    printed = capsys.readouterr()
    assert "\r" not in printed.out + printed.err and "\x1b" not in printed.out + printed.err
    lines = [line for line in printed.out.splitlines() if line.startswith("step ")]
    assert len(lines) == 20, "a twentieth of the run each"
    metrics = "loss 0.693 acc 0.667 margin -0.123"
    assert lines[0].startswith(f"step 2 of 40 | injection, 0 % on-policy | {metrics}")
    assert lines[-1] == f"step 40 of 40 | fine-tuning, 100 % on-policy | {metrics} | 0 s left"
    decisions = [line for line in printed.out.splitlines() if line.startswith("boundary: step")]
    assert [line.split(" | ")[0] for line in decisions] == [f"boundary: step {step}" for step in (0, 20, 40)]
    assert "fine-tuning, 100 % on-policy | score 0.9" in decisions[1]
    assert " | crossed 0.5: from injection to fine-tuning (0 s" in decisions[1]


def test_every_so_many_steps_is_the_user_s_to_choose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 12, 100, PlainProgress(every_n_steps=5))
    shown = capsys.readouterr().out
    assert [line.split(" |")[0] for line in shown.splitlines() if " of 12" in line] == ["step 5 of 12", "step 10 of 12"]
    with pytest.raises(ValueError, match="every_n_steps must be at least 1 optimizer step, got 0"):
        PlainProgress(every_n_steps=0)


def test_a_variable_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds() -> set[type]:
        trainer = AlignmentTrainer(default_root_dir=tmp_path, accelerator="cpu")
        return {type(callback) for callback in trainer.callbacks if isinstance(callback, ProgressBar)}  # type: ignore[attr-defined]

    assert kinds() == {PlainProgress}, "the test's output is no terminal"
    for style, kind in (("bar", {AlignmentProgressBar}), ("Plain", {PlainProgress}), ("off", set()), ("auto", None)):
        monkeypatch.setenv("LIT_ALIGN_PROGRESS", style)
        assert kinds() == ({PlainProgress} if kind is None else kind), style
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert kinds() == {AlignmentProgressBar}
    monkeypatch.setenv("TERM", "dumb")
    assert kinds() == {PlainProgress}
    monkeypatch.setenv("LIT_ALIGN_PROGRESS", "fancy")
    with pytest.raises(ValueError, match="LIT_ALIGN_PROGRESS is one of auto, bar, plain and off, but it is 'fancy'"):
        progress_style()


def test_off_leaves_the_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIT_ALIGN_PROGRESS", "off")
    fit(tmp_path, 4, 4)
    shown = capsys.readouterr().out
    assert " of 4 |" not in shown and shown.count("boundary: step") == 2


def test_an_activity_in_lines_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with show_activity(10, "judging", "answers") as short:
        short.update(10)
    assert isinstance(short, ActivityLines) and capsys.readouterr().out == "", "nothing of what takes no time"
    lines = ActivityLines(10, "judging", "answers", every=0)
    lines.update(4)
    lines.update(6)
    ActivityLines(None, "reading", "rows", every=0).update(3)
    assert capsys.readouterr().out.splitlines() == [
        "judging: 4 of 10 answers, 0 s left",
        "judging: 10 of 10 answers",
        "reading: 3 rows in 0 s",
    ]


def test_only_the_first_process_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lit_align.console.process_rank", lambda: 1)
    note("nobody sees it")
    activity = show_activity(10, "judging", "answers", style="bar")
    activity.update(3)
    assert capsys.readouterr().out == ""


def test_the_time_left_counts_the_measurements_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds a step; 12 for each of the measurements, the last of which came between the two steps."""
    clock = iter([100.0, 102.0, 116.0])
    monkeypatch.setattr("lit_align.progress.status.perf_counter", lambda: next(clock))
    boundary = BoundaryCallback(every_n_steps=10)
    trainer: Any = SimpleNamespace(callbacks=[boundary], global_step=0)
    time_left = TimeLeft()
    assert time_left.estimate(trainer, 40) is None
    boundary.history.append(decision(0, 0.3, "injection"))
    time_left.start(trainer)
    trainer.global_step = 1
    time_left.count(trainer)
    assert time_left.estimate(trainer, 40) == 39 * 2 + 4 * 12
    monkeypatch.setitem(CLOCK.seconds, "measuring/judging", 12 + CLOCK.seconds.get("measuring/judging", 0.0))
    trainer.global_step = 2
    time_left.count(trainer)
    assert time_left.pace == 2 and time_left.estimate(trainer, None) is None


def test_of_a_long_run_the_first_steps_stand_for_all() -> None:
    history = [decision(0, 0.3, "injection")]
    asked: list[int] = []

    def due(step: int) -> bool:
        asked.append(step)
        return step % 100 == 0

    assert expected_seconds(history, due, range(1, 1_000_001)) == pytest.approx(10_000 * 12)
    assert len(asked) == 10_000
    assert expected_seconds(history, due, range(5, 5)) == 0 == expected_seconds([], due, range(9))


def test_the_comparisons_with_the_start_are_announced() -> None:
    callback = WinRateCallback(every_n_steps=10)
    assert callback.seconds_to_come(0, 25) == 0, "nothing is known before the start's answers"
    callback.load_state_dict({"before": [{}], "seconds": 6.0})
    assert [callback.seconds_to_come(step, 25) for step in (0, 9, 10, 24, 25)] == [18, 18, 12, 6, 0]
    assert [callback.seconds_to_come(step, 20) for step in (0, 19)] == [12, 6], "the last step is compared once"
    at_the_end = WinRateCallback()
    at_the_end.load_state_dict({"before": [{}], "seconds": 6.0})
    assert at_the_end.seconds_to_come(3, 25) == 6


def test_durations_are_in_words() -> None:
    assert [format_duration(seconds) for seconds in (0.4, 99, 100, 3599, 3600, 90_000)] == [
        "0 s", "99 s", "1 min 40 s", "59 min 59 s", "1 h 00 min", "25 h 00 min",
    ]  # fmt: skip


def test_the_screen_of_these_tests_is_one() -> None:
    assert render("abc\rx\r\n1\r\nfirst\r\n\x1b[Asecond\x1b[K", 80) == ["xbc", "1", "second", ""]
    assert render("abcdef", 4) == ["abcd", "ef"]
