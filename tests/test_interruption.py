"""Signals at every moment of a fit: the run that goes on afterwards is the run that was never stopped."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lit_align import AlignmentTrainer
from lit_align.html_report import ReportCallback
from lit_align.training.checkpoint import AlignmentCheckpoint
from tests.helpers.processes import exit_code_of

STEPS = 6
AT = 4
"""The step in which signals come; a validation is due at its end."""
BEFORE_THE_LOG = {"error": 3, "batch end of the module": 3}
"""Moments, and their steps, at which the step is complete and its row is not yet logged."""


class Press(Callback):
    """Sends signals to its own process at a moment of a step."""

    def __init__(self, moment: str, numbers: tuple[int, ...], step: int = AT) -> None:
        self.moment, self.numbers, self.step = moment, numbers, step

    def fail(self, step: int) -> None:
        if self.moment == "error" and step == self.step and self.numbers:
            self.numbers = ()
            raise RuntimeError("the judge went away")

    def at(self, moment: str, step: int) -> None:
        if moment == self.moment and step == self.step and self.numbers:
            numbers, self.numbers = self.numbers[:2], self.numbers[2:]
            for number in numbers:
                os.kill(os.getpid(), number)

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        for number in self.numbers:
            os.kill(os.getpid(), number)

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.at("batch start", trainer.global_step + 1)

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        self.at("before the optimizer", trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.at("batch end", trainer.global_step)
        self.fail(trainer.global_step)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        self.at("validation", trainer.global_step)

    def on_save_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.at("saving", trainer.global_step)


class EverySecondStep(Callback):
    """Something due at some steps, such as a refresh of the reference: adds to a weight."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % 2 == 0:
            pl_module.layer.bias.data += 0.1


class Boring(BoringModel):
    """Logs its loss; its optimizer and its data may send signals."""

    def __init__(self, press: Press) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = torch.nn.Linear(32, 2)
        self.press = press

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        place = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        row = torch.randn(32, generator=torch.Generator().manual_seed(place))
        loss = self.layer(row).square().mean()
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.press.at("batch end of the module", self.trainer.global_step)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        taken = iter(range(1, 99))
        begun = self.trainer.global_step
        optimizer.register_step_post_hook(lambda *_: self.press.at("optimizer step", begun + next(taken)))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, step: int) -> float:
        self.press.at("scheduler", step)
        return float(0.8**step)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(8, 32))  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(torch.ones(4, 32))  # type: ignore[arg-type]


def fit(folder: Path, moment: str, numbers: tuple[int, ...], before: bool, resume: bool, accumulate: int) -> None:
    press = Press(moment, numbers, BEFORE_THE_LOG.get(moment, AT))
    others: list[Callback] = [EverySecondStep(), ReportCallback("never")]
    trainer = AlignmentTrainer(
        default_root_dir=folder, max_steps=STEPS, accelerator="cpu", enable_progress_bar=False, limit_val_batches=2,
        logger=CSVLogger(folder, name="csv"),
        accumulate_grad_batches=accumulate, val_check_interval=4 * accumulate, check_val_every_n_epoch=None,
        callbacks=[press, *others] if before else [*others, press, AlignmentCheckpoint(every_n_train_steps=4)],
    )  # fmt: skip
    trainer.fit(Boring(press), ckpt_path="last" if resume else None)


def run(folder: Path, *args: Any) -> int | None:
    return exit_code_of(fit, folder, *args, timeout=60)


def logged(folder: Path) -> dict[int, dict[str, str]]:
    """All values of all attempts by step; the last one counts."""
    rows: dict[int, dict[str, str]] = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            values = {name: value for name, value in row.items() if value and name not in ("step", "epoch")}
            rows.setdefault(int(row["step"]), {}).update(values)
    return rows


def weights(folder: Path) -> dict[str, Any]:
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return {"weights": saved["state_dict"], "schedule": saved["lr_schedulers"], "optimizer": saved["optimizer_states"]}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(torch.equal(left, right)) if isinstance(left, torch.Tensor) else bool(left == right)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    folders: dict[int, Path] = {}

    def of(accumulate: int) -> Path:
        if accumulate not in folders:
            folders[accumulate] = tmp_path_factory.mktemp("whole")
            assert run(folders[accumulate], "", (), False, False, accumulate) == 0
        return folders[accumulate]

    return of


INT, TERM = int(signal.SIGINT), int(signal.SIGTERM)


@pytest.mark.parametrize(
    ("moment", "numbers", "before", "accumulate", "stops_at"),
    [
        ("batch start", (INT,), False, 1, 4),
        ("before the optimizer", (INT,), False, 1, 4),
        ("optimizer step", (INT,), False, 1, 4),
        ("optimizer step", (TERM,), False, 2, 4),
        ("scheduler", (INT,), False, 1, 4),
        ("batch end", (INT,), True, 1, 4),
        ("batch end", (TERM,), False, 1, 4),
        ("validation", (INT,), False, 1, 4),
        ("saving", (INT,), False, 1, 4),
        ("saving", (TERM,), False, 1, 4),
        ("batch end of the module", (INT, INT), False, 1, 3),
        ("batch end of the module", (INT, TERM), True, 2, 3),
        ("error", (INT,), False, 1, 3),
        ("error", (INT,), True, 2, 3),
        ("optimizer step", (INT, INT, INT), False, 1, 0),
        ("batch end", (INT, TERM, INT), True, 2, 0),
    ],
)
def test_a_signal_at_any_moment(
    moment: str, numbers: tuple[int, ...], before: bool, accumulate: int, stops_at: int, tmp_path: Path,
    whole: Callable[[int], Path],
) -> None:  # fmt: skip
    expected = whole(accumulate)
    code = run(tmp_path, moment, numbers, before, False, accumulate)
    assert code == (143 if numbers[:2][-1] == TERM else 1)
    if stops_at:
        assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == stops_at
    assert run(tmp_path, "", (), before, True, accumulate) == 0
    assert same(weights(tmp_path), weights(expected))
    assert logged(tmp_path) == logged(expected)
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == STEPS
