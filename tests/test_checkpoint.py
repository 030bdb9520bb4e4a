"""Checkpoints: when they are written, that they resume bit by bit after a kill, that a failure leaves the last one."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_align.training.checkpoint import AlignmentCheckpoint
from tests.helpers.processes import exit_code_of

KILLED = 137


class Boring(BoringModel):
    """32 batches an epoch; validation has something to monitor."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch).sum())


class SavedAt(AlignmentCheckpoint):
    """Notes at which step, and at which moment, each checkpoint was written."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.saved: list[tuple[int, bool, bool]] = []

    def _save_checkpoint(self, trainer: LightningTrainer, filepath: str) -> None:
        accumulating = trainer.fit_loop.epoch_loop._should_accumulate()
        self.saved.append((trainer.global_step, trainer.validating, accumulating))
        super()._save_checkpoint(trainer, filepath)


def boring_fit(folder: Path, checkpoint: AlignmentCheckpoint, **kwargs: Any) -> LightningTrainer:
    trainer = LightningTrainer(
        default_root_dir=folder, accelerator="cpu", callbacks=[checkpoint], logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=1, **kwargs,
    )  # fmt: skip
    trainer.fit(Boring())
    return trainer


def test_saves_every_n_steps_once_and_the_last_step(tmp_path: Path) -> None:
    checkpoint = SavedAt(dirpath=str(tmp_path), every_n_train_steps=4)
    boring_fit(tmp_path, checkpoint, max_steps=10, accumulate_grad_batches=2, check_val_every_n_epoch=99)
    assert checkpoint.saved == [(4, False, False), (8, False, False), (10, False, False)]
    assert sorted(path.name for path in tmp_path.glob("*")) == ["last-previous.ckpt", "last.ckpt"]
    saved = [torch.load(path, weights_only=True)["global_step"] for path in sorted(tmp_path.glob("*"))]
    assert saved == [8, 10]
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert [one["last_global_step_saved"] for one in state["callbacks"].values()] == [10]


def test_the_last_step_of_an_epoch_limit_is_saved(tmp_path: Path) -> None:
    checkpoint = SavedAt(dirpath=str(tmp_path), every_n_train_steps=100)
    boring_fit(tmp_path, checkpoint, max_epochs=1, limit_train_batches=6, check_val_every_n_epoch=2)
    assert checkpoint.saved == [(6, False, False)]


def test_saves_after_a_validation_that_is_due_at_its_step(tmp_path: Path) -> None:
    checkpoint = SavedAt(dirpath=str(tmp_path), every_n_train_steps=2)
    boring_fit(tmp_path, checkpoint, max_steps=6, val_check_interval=4)
    assert checkpoint.saved == [(2, False, False), (4, True, False), (6, False, False)]


def test_never_saves_in_a_validation_amid_accumulation(tmp_path: Path) -> None:
    # Validation after micro-batches 3, 6, 9, 12; steps after 2, 4, ..., so only 6 and 12 are both.
    checkpoint = SavedAt(dirpath=str(tmp_path), every_n_train_steps=1)
    boring_fit(tmp_path, checkpoint, max_steps=6, accumulate_grad_batches=2, val_check_interval=3)
    assert not any(accumulating for _, _, accumulating in checkpoint.saved)
    assert [step for step, validating, _ in checkpoint.saved if validating] == [3, 6]


class DueBetweenSteps(SavedAt):
    """The interval runs out while gradients are being accumulated."""

    def _time_is_up(self, trainer: LightningTrainer, interval: timedelta) -> bool:
        return bool(trainer.fit_loop.epoch_loop._should_accumulate())


def test_a_time_that_runs_out_amid_accumulation_saves_nothing_there(tmp_path: Path) -> None:
    checkpoint = DueBetweenSteps(dirpath=str(tmp_path), train_time_interval=timedelta(seconds=1))
    boring_fit(tmp_path, checkpoint, max_steps=4, accumulate_grad_batches=2, check_val_every_n_epoch=99)
    assert checkpoint.saved == [(4, False, False)]


def test_a_time_interval_saves_at_steps(tmp_path: Path) -> None:
    checkpoint = SavedAt(dirpath=str(tmp_path), train_time_interval=timedelta(0))
    boring_fit(tmp_path, checkpoint, max_steps=3, accumulate_grad_batches=2, check_val_every_n_epoch=99)
    assert [step for step, _, _ in checkpoint.saved] == [1, 2, 3]


def test_a_monitor_keeps_the_best(tmp_path: Path) -> None:
    checkpoint = SavedAt(dirpath=str(tmp_path), every_n_train_steps=2, monitor="val/loss", filename="{step}")
    boring_fit(tmp_path, checkpoint, max_steps=6, val_check_interval=2)
    best = Path(checkpoint.best_model_path).name
    assert {path.name for path in tmp_path.glob("*")} == {"last-previous.ckpt", "last.ckpt", best}
    assert checkpoint.best_model_score is not None


def test_a_resumed_run_ranks_by_the_metrics_from_before(tmp_path: Path) -> None:
    def make(folder: str) -> AlignmentCheckpoint:
        return AlignmentCheckpoint(
            str(tmp_path / folder), "{step}", "val/loss", every_n_train_steps=2, save_top_k=-1
        )  # fmt: skip

    names = []
    for folder, ends in (("whole", [6]), ("resumed", [4, 6])):
        for steps in ends:  # validation at step 4: at step 6 its metric stands still
            trainer = LightningTrainer(
                default_root_dir=tmp_path, accelerator="cpu", callbacks=[make(folder)], logger=False, max_steps=steps,
                enable_progress_bar=False, enable_model_summary=False, val_check_interval=4, limit_val_batches=1,
            )  # fmt: skip
            trainer.fit(Boring(), ckpt_path=tmp_path / folder / "last.ckpt" if steps != ends[0] else None)
        names.append(sorted(path.name for path in (tmp_path / folder).iterdir()))
    assert names[0] == names[1] and len(names[0]) == 4


def test_a_failed_write_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = AlignmentCheckpoint(dirpath=str(tmp_path), every_n_train_steps=2)
    boring_fit(tmp_path, checkpoint, max_steps=2, check_val_every_n_epoch=99)
    before = (tmp_path / "last.ckpt").read_bytes()

    def full_disk(checkpoint: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        boring_fit(tmp_path, AlignmentCheckpoint(dirpath=str(tmp_path), every_n_train_steps=2), max_steps=4)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*")] == ["last.ckpt"]


def test_a_checkpoint_is_written_beside_its_target_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    save = torch.save

    def record(checkpoint: dict[str, Any], path: Path) -> None:
        names.append(path.relative_to(tmp_path).as_posix())
        save(checkpoint, path)

    monkeypatch.setattr(torch, "save", record)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))  # Lightning's own way would fail
    boring_fit(tmp_path, AlignmentCheckpoint(dirpath=str(tmp_path)), max_steps=2, check_val_every_n_epoch=99)
    assert names == ["last.ckpt.part"]


class Recorder(Callback):
    """Appends each micro-batch to a file, with all that must agree: place, tokens, loss, learning rate, source.

    Ends the process after micro-batch `die_at`, or presses Ctrl-C in the midst of micro-batch `stop_at`.
    """

    def __init__(self, path: Path, die_at: int | None = None, stop_at: int | None = None) -> None:
        self.path, self.die_at, self.stop_at = path, die_at, stop_at

    def on_before_backward(self, trainer: Any, pl_module: LightningModule, loss: Any) -> None:
        if trainer.datamodule.delivered == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, idx: int) -> None:
        row = {
            "micro_batch": trainer.datamodule.delivered,
            "step": trainer.global_step,
            "loss": float(outputs["loss"]).hex(),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "on_policy": batch.on_policy.tolist(),
            "tokens": int(batch.chosen.ids.sum()),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if trainer.datamodule.delivered == self.die_at:
            os._exit(KILLED)


def aligned_run(model: str, folder: Path, record: Path, end: str, resume: bool, max_steps: int) -> None:
    """A whole run: dropout, accumulation, validation, measurements, on-policy rounds, a scheduler, a win rate.

    `end` is empty, or says how it ends: `die 9` and `stop 9` as in `Recorder`, `fail 4` where the judge is asked for
    the fourth time.
    """
    from lightning.pytorch import seed_everything

    from lit_align.boundary import BoundaryCallback
    from lit_align.data import AlignmentDataModule
    from lit_align.judges import RuleJudge
    from lit_align.losses import DPO
    from lit_align.policy import LoraSpec, PolicySpec
    from lit_align.report import WinRateCallback
    from lit_align.sampling import TransformersSampler
    from lit_align.trainer import AlignmentTrainer
    from lit_align.training.module import AlignmentModule

    how, _, number = end.partition(" ")
    at = int(number) if number else None
    seed_everything(3 if resume else 1)  # a resumed run must not depend on what its start-up drew
    data = AlignmentDataModule(
        train=str(folder.parent / "rows.jsonl"), val_fraction=0.4, batch_size=2, seed=4, round_prompts=3,
        judge=RuleJudge(Failing(at) if how == "fail" else variety),
        sampler=TransformersSampler(num_candidates=2, max_new_tokens=5),
    )  # fmt: skip
    module = AlignmentModule(
        PolicySpec(model=model, lora=LoraSpec(r=2, dropout=0.2)),
        DPO(beta=0.5),
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95),
    )
    trainer = AlignmentTrainer(
        default_root_dir=str(folder), max_steps=max_steps, accumulate_grad_batches=2, val_check_interval=6,
        accelerator="cpu", enable_progress_bar=False,
        callbacks=[
            Recorder(record, die_at=at if how == "die" else None, stop_at=at if how == "stop" else None),
            BoundaryCallback(every_n_steps=3, max_prompts=4, sequential=False, alpha=0.9),  # decides on its guess
            WinRateCallback(num_prompts=3, every_n_steps=2), AlignmentCheckpoint(every_n_train_steps=3),
        ],
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path="last" if resume else None)


def variety(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [len(set(text)) / (1 + len(text)) for text in candidates]


class Failing:
    """`variety`, until it fails at a given answer set."""

    def __init__(self, at: int | None) -> None:
        self.left = at or 0

    def __call__(self, prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("the judge is away")
        return variety(prompt, candidates, row)


def in_a_process(
    model: Path, folder: Path, record: Path, end: str = "", resume: bool = False, max_steps: int = 9
) -> int | None:
    return exit_code_of(aligned_run, str(model), folder, record, end, resume, max_steps)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_and_resumed_equals_never_killed(tmp_path: Path, tiny_model: Path) -> None:
    data = [
        {"prompt": f"Give fact {n}.", "candidates": [f"tea {n}", f"a much longer tea {n}", "the sea"]}
        for n in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert in_a_process(tiny_model, whole, tmp_path / "whole.log") == 0
    # Killed amid accumulation after the checkpoint of step 3 (where validation was due), then after that of step 6.
    assert in_a_process(tiny_model, killed, tmp_path / "1.log", "die 9") == KILLED
    assert in_a_process(tiny_model, killed, tmp_path / "2.log", "die 15", resume=True) == KILLED
    assert in_a_process(tiny_model, killed, tmp_path / "3.log", resume=True) == 0

    expected = rows(tmp_path / "whole.log")
    assert [row["micro_batch"] for row in expected] == list(range(1, 19))
    parts = [rows(tmp_path / f"{n}.log") for n in (1, 2, 3)]
    assert [part[0]["micro_batch"] for part in parts] == [1, 7, 13]
    for part in parts:
        begin = part[0]["micro_batch"] - 1
        assert part == expected[begin : begin + len(part)]
    assert {flag for row in expected for flag in row["on_policy"]} == {True, False}, "both sources were in use"
    counts = json.loads((whole / "summary.json").read_text())["rows"]
    assert counts["on_policy/reused"] > 0, "a measurement's samples became pairs"

    # A run that ended goes on, too, where it is given more steps.
    longer = tmp_path / "longer"
    assert in_a_process(tiny_model, longer, tmp_path / "4.log", max_steps=5) == 0
    assert in_a_process(tiny_model, longer, tmp_path / "4.log", resume=True) == 0
    assert rows(tmp_path / "4.log") == expected

    def untimed(folder: Path, name: str) -> list[dict[str, Any]]:
        clock = ("seconds", "share_of_training")
        return [{k: v for k, v in row.items() if k not in clock} for row in rows(folder / name)]

    for name in ("boundary.jsonl", "answers.jsonl", "samples.jsonl"):
        assert untimed(killed, name) == untimed(whole, name)
    win_rates = [json.loads((folder / "summary.json").read_text())["win_rates"] for folder in (whole, killed)]
    assert [result["step"] for result in win_rates[0]] == [2, 4, 6, 8, 9]
    assert [{**result, "seconds": 0} for result in win_rates[0]] == [
        {**result, "seconds": 0} for result in win_rates[1]
    ]
    weights = [torch.load(one / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for one in (whole, killed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_stopped_by_ctrl_c_or_an_error_it_goes_on_from_that_very_step(tmp_path: Path, tiny_model: Path) -> None:
    data = [{"prompt": f"Give fact {n}.", "candidates": [f"tea tea {n}", f"tea tea tea {n}"]} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert in_a_process(tiny_model, whole, tmp_path / "whole.log") == 0
    expected = rows(tmp_path / "whole.log")
    assert True in [flag for row in expected for flag in row["on_policy"]]
    # Ctrl-C in the first of a step's two micro-batches: the step is finished and saved, though none was due at step 2.
    record = tmp_path / "stopped.log"
    assert in_a_process(tiny_model, stopped, record, "stop 3") == 1
    assert rows(record) == expected[:4]
    # A judge that fails in a later measurement or round: what was done since the last checkpoint is done again, alike.
    last_done = 4
    for number, end in enumerate(["fail 30", "fail 45", ""]):
        part = tmp_path / f"{number}.log"
        in_a_process(tiny_model, stopped, part, end, resume=True)
        if not part.exists():
            continue
        begin = rows(part)[0]["micro_batch"] - 1
        assert begin % 2 == 0 and begin <= last_done, "it goes on between two steps"
        assert rows(part) == expected[begin : begin + len(rows(part))]
        last_done = begin + len(rows(part))
    assert last_done == len(expected)
    weights = [torch.load(one / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for one in (whole, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
