"""The report of a run under way: refreshed at decisions, honest after a stop, and never the reason that a run ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from callbacks import FixedSwitch
from lit_align import run_folder
from lit_align.html_report import ReportCallback, page
from lit_align.report import RunSummary
from lit_align.trainer_defaults import all_callbacks
from tests.helpers.boundary_fakes import FakeData, FakeModule, quiet_trainer


class Watch(Callback):
    """Reads the page after each step."""

    def __init__(self, folder: Path, stop_at: int | None = None) -> None:
        self.folder = folder
        self.stop_at = stop_at
        self.seen: list[str] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        path = self.folder / "report.html"
        self.seen.append(path.read_text(encoding="utf-8") if path.exists() else "")
        if trainer.global_step == self.stop_at:
            raise RuntimeError("the power went")


def sentence(html: str) -> str:
    found = re.search(r'<p class="sentence">(.*?)</p>', html, re.DOTALL)
    return found[1] if found else ""


def fit(folder: Path, report: ReportCallback, stop_at: int | None = None) -> Watch:
    watch = Watch(folder, stop_at)
    parts: list[Callback] = [FixedSwitch(2), RunSummary(show=False), report, watch]
    logger = CSVLogger(str(folder), name="csv")
    with run_folder.locked(folder):
        quiet_trainer(folder, *parts, max_steps=3, logger=logger).fit(FakeModule(), datamodule=FakeData())
    return watch


def decisions_on(html: str) -> int:
    """The decisions that the stage's chart shows."""
    return html.count('<td class="num">0</td><td class=') + html.count('<td class="num">2</td><td class=')


def test_the_page_is_there_from_the_start_and_grows_with_each_decision(tmp_path: Path) -> None:
    report = ReportCallback()
    report.most_of_time = 1e9  # each decision, however fast they come
    watch = fit(tmp_path, report)
    assert [decisions_on(html) for html in watch.seen] == [1, 2, 2]
    assert sentence(watch.seen[0]).startswith("Under way, step 0 of 3") and 'data-running="yes"' in watch.seen[0]
    after = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Under way" not in sentence(after) and "data-running" not in after.split("<script", maxsplit=1)[0]
    assert "report" in json.loads((tmp_path / "summary.json").read_text())["outputs"]


def test_decisions_that_come_too_fast_wait_for_the_end(tmp_path: Path) -> None:
    report = ReportCallback()
    report.most_of_time = 0.0
    assert [decisions_on(html) for html in fit(tmp_path, report).seen] == [1, 1, 1]
    assert decisions_on((tmp_path / "report.html").read_text(encoding="utf-8")) == 2


def test_a_run_that_was_ended_says_by_what(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the power went"):
        fit(tmp_path, ReportCallback(), stop_at=2)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sentence(html).startswith("Stopped at step 2 of 3.") and "RuntimeError: the power went" in html


def test_a_report_that_fails_never_ends_a_run_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(page, "write_report", fail)
    report = ReportCallback()
    report.most_of_time = 1e9
    assert len(fit(tmp_path, report).seen) == 3
    assert capsys.readouterr().out.count("The report was not written (OSError: no space left)") == 1


def test_it_can_be_left_to_the_end_or_off(tmp_path: Path) -> None:
    watch = fit(tmp_path / "end", ReportCallback("end"))
    assert watch.seen == ["", "", ""] and (tmp_path / "end/report.html").exists()
    fit(tmp_path / "never", ReportCallback("never"))
    assert not (tmp_path / "never/report.html").exists()
    with pytest.raises(ValueError, match="expected when to be"):
        ReportCallback("always")  # type: ignore[arg-type]


def test_every_run_has_one(tmp_path: Path) -> None:
    kinds = [type(callback) for callback in all_callbacks([], True, False, tmp_path)]
    assert kinds.index(ReportCallback) > kinds.index(RunSummary), "it shows the summary"
    own = ReportCallback("never")
    assert [c for c in all_callbacks([own], True, False, tmp_path) if isinstance(c, ReportCallback)] == [own]
