"""The progress bar of a fit, for terminals and notebooks."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lit_align.console import format_duration
from lit_align.progress.status import (
    TimeLeft,
    count_steps,
    describe_metrics,
    describe_score,
    describe_stage,
    format_short,
)

MOST_OFTEN = 0.1
"""Seconds from one update of the lines to the next."""


class AlignmentProgressBar(TQDMProgressBar):
    """Two lines for the whole fit: its optimizer steps, the last score and the time left; then stage and metrics.

    The totals are right with gradient accumulation, several epochs, and a resume in the middle of an epoch, and the
    time left includes the measurements that are still to come.

    Args:
        refresh_rate: optimizer steps between two updates; 0 hides the lines.
    """

    STEPS_FORMAT = "{n_fmt}/{total_fmt} {bar} {desc}"  # the bar takes the rest of the line

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._status: Tqdm | None = None
        self._time_left = TimeLeft()
        self._shown = 0.0

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.bar_format = self.STEPS_FORMAT
        bar.set_description_str("", refresh=False)
        return bar

    def init_validation_tqdm(self) -> Tqdm:
        position = 0 if self._status is None else 2  # below the two lines of training
        return Tqdm(
            desc="validating", position=position, disable=self.is_disabled, leave=False, dynamic_ncols=True,
            file=sys.stdout, bar_format=self.BAR_FORMAT,
        )  # fmt: skip

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.train_progress_bar = self.init_train_tqdm()
        bar = self.train_progress_bar
        bar.reset(total=count_steps(trainer))
        bar.initial = bar.n = trainer.global_step
        bar.refresh()
        self._status = Tqdm(
            bar_format="{desc}", position=1, disable=self.is_disabled, dynamic_ncols=True, file=sys.stdout
        )

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Does nothing: the bar spans all epochs."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.train_progress_bar.n == self.train_progress_bar.initial:  # its first step
            self._time_left.start(trainer)
            self._show(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar = self.train_progress_bar
        if trainer.global_step <= bar.n:
            return
        self._time_left.count(trainer)
        is_due = self._should_update(trainer.global_step, int(bar.total or 0))
        if is_due and monotonic() - self._shown >= MOST_OFTEN:
            self._show(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.train_progress_bar.disable:
            self._show(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        if not self.train_progress_bar.disable:
            self._show(trainer)
        self._close()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self.val_progress_bar.set_description_str("validating")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the lines, so that the next message has one of its own."""
        self._close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands below the bar, by part."""
        parts = {"stage": describe_stage, "metrics": describe_metrics}
        return {name: text for name, describe in parts.items() if (text := describe(trainer))}

    def _show(self, trainer: Trainer) -> None:
        self._shown = monotonic()
        bar = self.train_progress_bar
        bar.n = trainer.global_step
        bar.set_description_str(", ".join(filter(None, [describe_score(trainer), *self._time(trainer)])))
        if self._status is not None:
            self._status.set_description_str(" | ".join(self.get_metrics(trainer, trainer.lightning_module).values()))

    def _time(self, trainer: Trainer) -> list[str]:
        pace = self._time_left.pace
        left = self._time_left.estimate(trainer, self.train_progress_bar.total)
        return [
            *([] if pace is None else [f"{format_short(pace)} s a step"]),
            *([] if left is None else [f"{format_duration(left)} left"]),
        ]

    def _close(self) -> None:
        for bar in (self._train_progress_bar, self._status):  # the upper one first: tqdm moves the lower one up
            if bar is not None:
                bar.close()
        self._status = None
