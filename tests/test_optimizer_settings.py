"""Resuming with other settings: they count from there on and are said, or the resume is refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from lit_align.policy import PolicySpec
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.lr_schedulers import ScheduleSequence, WarmupSchedule
from lit_align.training.pair_module import PairModule
from tests.helpers.modules import loader_of

MakeScheduler = Callable[[Optimizer], Any]


class Line(PairModule):
    """One linear layer that learns to give 0."""

    spec = PolicySpec("no/model")

    def __init__(self, make: Callable[[Any], Optimizer], scheduler: MakeScheduler | None) -> None:
        super().__init__(make, scheduler)
        self.layer = nn.Linear(2, 1)

    def settings(self) -> dict[str, Any]:
        return {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.as_tensor(self.layer(batch)).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", 1.0)  # never better: a plateau at once

    def evaluate_pairs(self, batch: Any) -> dict[str, Tensor]:
        return {}

    def rewards(self, batch: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Record(Callback):
    """The learning rate and weight decay of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.decays: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.decays.append(optimizer.param_groups[0]["weight_decay"])


def adamw(lr: float = 1.0, **more: Any) -> Callable[[Any], Optimizer]:
    return lambda params: AdamW(params, lr=lr, **more)


def fit(
    folder: Path, steps: int, make: Callable[[Any], Optimizer], scheduler: MakeScheduler | None = None, **more: Any
) -> tuple[Record, Tensor]:
    """Trains to a step, from the folder's last checkpoint where there is one."""
    torch.manual_seed(0)
    record, module = Record(), Line(make, scheduler)
    data = loader_of([torch.tensor([0.5, 0.25])] * 8, batch_size=1)  # all alike
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[record, AlignmentCheckpoint(str(folder), every_n_train_steps=1, **more)],
        limit_train_batches=1, num_sanity_val_steps=0, limit_val_batches=1,
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(module, data, data, ckpt_path=last if last.exists() else None, weights_only=True)
    return record, module.layer.weight.detach().clone()


def course(scheduler: MakeScheduler, steps: int, lr: float = 1.0) -> list[float]:
    """The rates of a fit that has the scheduler from its first step."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    made: LRScheduler = scheduler(optimizer)
    rates: list[float] = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return rates


def exponential(optimizer: Optimizer) -> LRScheduler:
    return ExponentialLR(optimizer, 0.5)


def linear(optimizer: Optimizer) -> LRScheduler:
    return LinearLR(optimizer, 0.1, total_iters=5)


def cosine(period: int) -> MakeScheduler:
    return lambda optimizer: CosineAnnealingLR(optimizer, T_max=period)


def sequence(optimizer: Optimizer) -> LRScheduler:
    return ScheduleSequence(optimizer, [linear, cosine(6)], [2])


def plateau(patience: int) -> MakeScheduler:
    return lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)


def one_cycle(optimizer: Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, max_lr=1.0, total_steps=9)


@pytest.mark.parametrize("scheduler", [None, exponential, linear, sequence, plateau(1), one_cycle, WarmupSchedule])
def test_what_is_unchanged_goes_on_bit_by_bit_and_nothing_is_said(
    scheduler: MakeScheduler | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"num_training_steps": 8} if scheduler is WarmupSchedule else {}
    make: MakeScheduler | None = None if scheduler is None else lambda optimizer: scheduler(optimizer, **more)
    whole, weights = fit(tmp_path / "whole", 6, adamw(), make)
    first, _ = fit(tmp_path / "cut", 3, adamw(), make)
    rest, again = fit(tmp_path / "cut", 6, adamw(), make)
    assert first.rates + rest.rates == whole.rates and torch.equal(again, weights)
    assert "Resumed" not in capsys.readouterr().out


def test_settings_of_the_optimizer_count_and_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 3, adamw(lr=1.0, weight_decay=0.0))
    record, _ = fit(tmp_path, 5, adamw(lr=0.25, weight_decay=0.3, betas=(0.8, 0.99)))
    assert record.rates == [0.25, 0.25] and record.decays == [0.3, 0.3]
    said = capsys.readouterr().out
    assert "from step 3 on: lr 1.0 -> 0.25, betas [0.9, 0.999] -> [0.8, 0.99], weight_decay 0.0 -> 0.3." in said
    record, _ = fit(tmp_path, 6, adamw(lr=0.25, weight_decay=0.3, betas=(0.8, 0.99)))
    assert record.rates == [0.25] and "Resumed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (None, linear, "scheduler none -> LinearLR"),
        (exponential, None, "scheduler ExponentialLR -> none"),
        (exponential, linear, "scheduler ExponentialLR -> LinearLR"),
        (cosine(6), cosine(20), "T_max of CosineAnnealingLR 6 -> 20"),
        (plateau(0), exponential, "scheduler ReduceLROnPlateau -> ExponentialLR"),
        (linear, sequence, "scheduler LinearLR -> ScheduleSequence"),
        (one_cycle, None, "scheduler OneCycleLR -> none"),
    ],
)
def test_another_scheduler_stands_where_it_would_had_it_always_been_there(
    before: MakeScheduler | None, now: MakeScheduler | None, words: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fit(tmp_path, 3, adamw(), before)
    record, _ = fit(tmp_path, 7, adamw(), now)
    expected = [1.0] * 4 if now is None else course(now, 7)[3:]
    assert record.rates == pytest.approx(expected, rel=1e-12)
    assert words in capsys.readouterr().out
    record, _ = fit(tmp_path, 8, adamw(), now)  # and on from there
    assert record.rates == pytest.approx([1.0] if now is None else course(now, 8)[7:], rel=1e-12)
    assert "Resumed" not in capsys.readouterr().out


def test_another_rate_under_a_scheduler_is_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 3, adamw(lr=1.0), exponential)
    record, _ = fit(tmp_path, 6, adamw(lr=8.0), exponential)
    assert record.rates == [1.0, 0.5, 0.25] and "lr 1.0 -> 8.0" in capsys.readouterr().out


def test_a_longer_fit_stretches_a_schedule_over_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(optimizer: Optimizer) -> LRScheduler:
        return WarmupSchedule(optimizer, "linear", num_warmup_steps=2)

    fit(tmp_path, 4, adamw(), make)
    record, _ = fit(tmp_path, 8, adamw(), make)
    assert record.rates == pytest.approx([4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert "num_training_steps of WarmupSchedule 4 -> 8" in capsys.readouterr().out


def test_a_plateau_keeps_what_it_has_reduced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = fit(tmp_path, 4, adamw(), plateau(0))
    record, _ = fit(tmp_path, 6, adamw(), plateau(9))
    assert first.rates[-1] < 1.0 and record.rates[0] <= first.rates[-1] and record.rates[1] == record.rates[0]
    assert "patience of ReduceLROnPlateau 0 -> 9" in capsys.readouterr().out
    record, _ = fit(tmp_path, 7, adamw(lr=3.0), plateau(9))
    assert record.rates == [3.0]


def test_another_optimizer_or_weights_alone_are_refused_in_a_sentence(tmp_path: Path) -> None:
    fit(tmp_path / "a", 2, adamw())
    with pytest.raises(ValueError, match="state of AdamW over 1 group .* has Adam over 1 group .*start a fresh run"):
        fit(tmp_path / "a", 4, lambda params: Adam(params, lr=1.0))
    fit(tmp_path / "b", 2, adamw(), save_weights_only=True)
    with pytest.raises(ValueError, match="holds only weights"):
        fit(tmp_path / "b", 4, adamw())


def test_a_checkpoint_that_does_not_tell_goes_on_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 2, adamw(lr=0.5))
    older = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del older["optimizer_settings"]
    torch.save(older, tmp_path / "last.ckpt")
    record, _ = fit(tmp_path, 3, adamw(lr=9.0))
    assert record.rates == [0.5] and "does not say how its optimizer was configured" in capsys.readouterr().out
