"""Schedules by name: transformers' own rates, over the steps that the fit really takes."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from transformers import get_scheduler

from lit_align import DPO, AlignmentTrainer
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.training.lr_schedulers import ScheduleSequence, WarmupSchedule
from lit_align.training.module import AlignmentModule
from tests.helpers.data_fakes import data_module, pair_rows, write
from tests.helpers.modules import loader


def optimizer(lr: float = 0.5) -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates(scheduler: LRScheduler, steps: int) -> list[float]:
    collected = []
    for _ in range(steps):
        collected.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        scheduler.step()
    return collected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine", {}),
        ("linear", {}),
        ("constant_with_warmup", {}),
        ("constant", {}),
        ("inverse_sqrt", {}),
        ("cosine_with_restarts", {"num_cycles": 2}),
        ("cosine_with_min_lr", {"min_lr": 0.05}),
        ("polynomial", {"power": 2.0}),
        ("warmup_stable_decay", {"num_decay_steps": 3}),
    ],
)
def test_each_name_gives_transformers_own_rates(name: Any, options: dict[str, Any]) -> None:
    schedule = WarmupSchedule(optimizer(), name, num_warmup_steps=3, num_training_steps=10, options=options)
    expected = get_scheduler(name, optimizer(), 3, 10, scheduler_specific_kwargs=options)
    assert rates(schedule, 10) == rates(expected, 10)


def test_a_ratio_is_of_the_steps_and_counts_up_to_whole_ones() -> None:
    schedule = WarmupSchedule(optimizer(1.0), "linear", warmup_ratio=0.21)
    schedule.fit_into(10)
    assert rates(schedule, 5) == pytest.approx([0, 1 / 3, 2 / 3, 1, 6 / 7])


@pytest.mark.parametrize(
    "given",
    [
        {"num_warmup_steps": 2, "warmup_ratio": 0.1},
        {"warmup_ratio": 1.0},
        {"num_warmup_steps": -1},
        {"num_warmup_steps": 9, "num_training_steps": 4},
    ],
)
def test_numbers_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give one|at least 0|longer than the 4"):
        WarmupSchedule(optimizer(), **given)


def test_one_after_the_other_is_torchs_own() -> None:
    def warmup(of: Optimizer) -> LRScheduler:
        return LinearLR(of, 0.1, total_iters=2)

    def decay(of: Optimizer) -> LRScheduler:
        return CosineAnnealingLR(of, T_max=4)

    own = optimizer()
    expected = SequentialLR(own, [warmup(own), decay(own)], [2])
    assert rates(ScheduleSequence(optimizer(), [warmup, decay], [2]), 6) == rates(expected, 6)


class Rates(Callback):
    """The learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])


def module(tiny_model: Path, **schedule: Any) -> AlignmentModule:
    return AlignmentModule(
        PolicySpec(str(tiny_model), lora=LoraSpec(r=2)), DPO(),
        optimizer=lambda params: AdamW(params, lr=1.0),
        lr_scheduler=lambda optimizer: WarmupSchedule(optimizer, **schedule),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("end", "steps"),
    [({"max_steps": 6}, 6), ({"max_epochs": 2}, 4), ({"max_steps": 3, "max_epochs": 9}, 3),
     ({"max_epochs": 1, "limit_train_batches": 2}, 1)],
)  # fmt: skip
def test_the_steps_of_the_fit_are_known(end: dict[str, Any], steps: int, tiny_model: Path, tmp_path: Path) -> None:
    seen = Rates()
    trainer = AlignmentTrainer(
        default_root_dir=str(tmp_path), accumulate_grad_batches=2, logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_checkpointing=False, callbacks=[seen], **end,
    )  # fmt: skip
    trainer.fit(module(tiny_model, name="linear"), loader(4))
    assert seen.used == pytest.approx([1 - step / steps for step in range(steps)])


def test_a_fit_without_an_end_has_no_whole_to_take_a_share_of(tiny_model: Path, tmp_path: Path) -> None:
    trainer = AlignmentTrainer(
        default_root_dir=str(tmp_path), max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False
    )
    with pytest.raises(ValueError, match="needs the fit's end: set trainer.max_steps"):
        trainer.fit(module(tiny_model), loader(2))


def test_counting_the_steps_of_epochs_leaves_the_data_where_they_are(tiny_model: Path, tmp_path: Path) -> None:
    """A resumed fit over epochs goes on with the pairs and the rates of one that never stopped."""
    train = write(tmp_path / "rows.jsonl", pair_rows(12))

    def fit(folder: str, stop: int | None = None) -> tuple[list[float], list[int]]:
        seen, tokens = Rates(), Tokens(stop)
        trainer = AlignmentTrainer(
            default_root_dir=str(tmp_path / folder), max_epochs=2, accelerator="cpu", logger=False,
            enable_progress_bar=False, callbacks=[seen, tokens],
        )  # fmt: skip
        data = data_module(train, sampler=None, judge=None)
        with contextlib.suppress(Halt):
            trainer.fit(module(tiny_model, warmup_ratio=0.25), datamodule=data, ckpt_path="last")
        return seen.used, tokens.seen

    whole = fit("whole")
    first, rest = fit("cut", stop=4), fit("cut")
    assert len(whole[0]) == 12 and whole[0][3] == 1.0 and math.isclose(whole[0][1], 1 / 3)
    assert (first[0] + rest[0], first[1] + rest[1]) == whole


class Halt(Exception):
    """Ends a fit between two steps."""


class Tokens(Callback):
    """What each micro-batch holds; halts the fit after one of them."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(int(batch.chosen.ids.sum()))
        if trainer.global_step == self.stop:
            raise Halt
