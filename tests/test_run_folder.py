"""A run's folder: earlier runs are put aside, files are whole or absent; the summary tells the truth."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks import FixedSwitch
from lit_align import AlignmentTrainer, RuleJudge, run_folder
from lit_align.report.crossing import crossing, for_the_next_run
from lit_align.report.summary import RunSummary
from lit_align.report.text import WIDTH, render
from tests.helpers.boundary_fakes import FakeData, FakeModule, decision, quiet_trainer


def test_archive_moves_what_is_the_runs_own_and_numbers_upwards(tmp_path: Path) -> None:
    assert run_folder.archive(tmp_path) is None
    for run in ("first", "second"):
        (tmp_path / "boundary.jsonl").write_text(run)
        (tmp_path / "csv" / "version_0").mkdir(parents=True)
        (tmp_path / "notes.txt").write_text("mine")
        run_folder.archive(tmp_path)
    assert (tmp_path / "previous/1/boundary.jsonl").read_text() == "first"
    assert (tmp_path / "previous/2/boundary.jsonl").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "previous"]


def test_put_back_undoes_archive_and_drops_what_the_failed_run_left(tmp_path: Path) -> None:
    (tmp_path / "boundary.jsonl").write_text("kept")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("weights")
    moved = run_folder.archive(tmp_path)
    assert moved is not None
    (tmp_path / "csv" / "version_0").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("of the failed run")
    run_folder.put_back(tmp_path, moved)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "boundary.jsonl", "checkpoints", "checkpoints/last.ckpt",
    ]  # fmt: skip


class Meanwhile(Callback):
    """Does something at the first step of a fit."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.act()


class Stopping(Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        raise RuntimeError("no more")


def trainer_in(root: Path, act: Callable[[], None], show: bool = False, **kwargs: Any) -> AlignmentTrainer:
    return AlignmentTrainer(
        default_root_dir=str(root), max_steps=2, accelerator="cpu", enable_progress_bar=False, logger=False,
        limit_val_batches=0, callbacks=[Meanwhile(act), RunSummary(show)], **kwargs,
    )  # fmt: skip


def test_a_fit_has_its_folder_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, refused = tmp_path / "run", []

    def others() -> None:
        (root / "boundary.jsonl").write_text("of the run under way")
        for kwargs in ({}, {"fast_dev_run": True}):
            with pytest.raises(run_folder.RunFolderInUse, match=f"process {os.getpid()} on .*default_root_dir"):
                trainer_in(root, lambda: None, **kwargs).fit(BoringModel(), ckpt_path="last")
            refused.append((root / "boundary.jsonl").read_text())
        trainer_in(tmp_path / "other", lambda: None).fit(BoringModel())
        monkeypatch.setattr(rank_zero_only, "rank", 1)  # a process of the same fit
        trainer_in(root, lambda: None, enable_checkpointing=False).fit(BoringModel())
        monkeypatch.setattr(rank_zero_only, "rank", 0)

    trainer_in(root, others).fit(BoringModel())
    assert refused == ["of the run under way"] * 2
    assert (root / "summary.json").is_file() and not (root / ".lock").exists()
    trainer_in(root, lambda: None).fit(BoringModel())
    assert (root / "previous/1/boundary.jsonl").read_text() == "of the run under way"


def test_a_judge_tells_at_the_end_and_at_a_stop_what_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Paid(RuleJudge):
        def report(self) -> str:
            return "judge x: 12 comparisons\ncost 3"

    data: Any = BoringDataModule()
    data.judge = Paid(lambda *_: [0.0])
    trainer_in(tmp_path, lambda: None, show=True).fit(BoringModel(), datamodule=data)
    assert json.loads((tmp_path / "summary.json").read_text())["judges"] == ["judge x: 12 comparisons", "cost 3"]
    assert "Judge x: 12 comparisons.\nCost 3.\n" in capsys.readouterr().out
    trainer = trainer_in(tmp_path, lambda: None, show=True)
    trainer.callbacks.insert(0, Stopping())  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="no more"):
        trainer.fit(BoringModel(), datamodule=data)
    assert "\njudge x: 12 comparisons\ncost 3\n" in capsys.readouterr().out


def test_a_fit_that_fails_at_its_start_leaves_the_folder_as_it_was_and_free(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")

    def fail() -> None:
        raise RuntimeError("no")

    trainer = trainer_in(tmp_path, lambda: None)
    trainer.strategy.setup_environment = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no"):
        trainer.fit(BoringModel())
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    with run_folder.locked(tmp_path):
        pass


def test_the_summary_says_whether_the_run_is_under_way_done_or_stopped(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = []
    boundary = FixedSwitch(1)

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            states.append(json.loads((tmp_path / "summary.json").read_text()))

    summary = RunSummary(show=False)
    quiet_trainer(tmp_path, boundary, summary, Watch(), max_steps=3).fit(FakeModule(), datamodule=FakeData())
    assert [(state["state"], len(state["decisions"])) for state in states] == [
        ("running", 2), ("running", 2), ("running", 2),
    ]  # fmt: skip
    after = json.loads((tmp_path / "summary.json").read_text())
    assert (after["state"], after["steps"], after["max_steps"], after["error"]) == ("finished", 3, 3, None)
    assert after["environment"]["versions"]["torch"] == torch.__version__
    assert sum(after["activities"].values()) == pytest.approx(after["seconds"]["total"], rel=0.05)
    stopping = quiet_trainer(tmp_path, RunSummary(show=False), Stopping(), max_steps=3)
    with pytest.raises(RuntimeError):
        stopping.fit(FakeModule(), datamodule=FakeData())
    after = json.loads((tmp_path / "summary.json").read_text())
    assert (after["state"], after["error"]) == ("stopped", "RuntimeError: no more")


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    run_folder.write_json(path, {"a": float("nan"), "b": [float("inf"), {"c": 1.5}], "d": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": None, "b": [None, {"c": 1.5}], "d": "ü"}
    with pytest.raises(TypeError):
        run_folder.write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["d"] == "ü"


def test_the_text_fits_a_terminal_and_holds_the_numbers() -> None:
    decisions = [decision(0, 0.3, "injection"), decision(20, 0.6, "fine_tuning", "a long reason " * 12)]
    summary = {
        "steps": 40,
        "crossing": crossing(decisions),
        "next": for_the_next_run(decisions),
        "decisions": [one.record() for one in decisions],
        "win_rate": {"score": 0.81, "low": 0.7, "high": 0.9, "prompts": 64, "mean_before": 0.25, "mean_after": 0.75},
        "rows": {"rows": 12, "pairs": 10, "prompts": 9, "val/pairs": 3, "ties": 2, "val/ties": 1, "bad_row/empty": 1},
        "rounds": [{"pairs": 30, "candidates": 64, "ties": 2}],
        "judges": ["verdict cache: 1 of 4 verdicts of ChatJudge were known; /a/long/path/to/the/cache/verdicts.sqlite"],
        "metrics": {"loss": 0.5, "rewards/accuracies": 0.75},
        "seconds": {"total": 200.4, "training": 150.0, "measuring": 50.0},
        "outputs": {"decisions": "runs/x/boundary.jsonl"},
    }
    answer = {"prompt": "p " * 80, "before": "", "after": "two\nlines"}
    text = render(summary, [answer])
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    for words in (
        "81 % (70 to 90 %) on 64 held-out prompts", "0.25 -> 0.75", "10 pairs from 9 prompts", "3 ties",
        "1 bad row: empty", "64 sampled answers gave 30 pairs", "3 min 20 s for 40 steps",
        "Verdict cache: 1 of 4 verdicts", "(empty)", "two lines",
        "For the next run, as measured at step 20: 0.60: the policy's own answers win 60 of 100 votes; pairs of its",
    ):  # fmt: skip
        assert words in " ".join(text.split()), words
