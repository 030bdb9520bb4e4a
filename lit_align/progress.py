"""The progress bar of a fit: optimizer steps, the stage and the metrics that tell whether training works."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lit_align.run_parts import callbacks_of, datamodule_of

STAGES = {"injection": "inject", "fine_tuning": "tune"}
METRICS = {"loss": "loss", "rewards/accuracies": "acc", "rewards/margins": "margin"}


class AlignmentProgressBar(TQDMProgressBar):
    """One progress bar for the whole fit, counted in optimizer steps.

    Its totals are right with gradient accumulation, several epochs, and a resume in the middle of an epoch.

    Args:
        refresh_rate: optimizer steps between two updates; 0 hides the bar.
    """

    TRAIN_FORMAT = (
        "{n_fmt}/{total_fmt} {bar} {remaining} left {rate_fmt}{postfix}"  # the bar takes the rest of the line
    )

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.bar_format = self.TRAIN_FORMAT
        return bar

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.train_progress_bar = self.init_train_tqdm()
        bar = self.train_progress_bar
        bar.reset(total=_total_steps(trainer))
        bar.initial = bar.n = trainer.global_step
        bar.refresh()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Does nothing: the bar spans all epochs."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar = self.train_progress_bar
        if trainer.global_step > bar.n and self._should_update(trainer.global_step, int(bar.total or 0)):
            self._show(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.train_progress_bar.disable:
            self._show(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self.val_progress_bar.set_description_str("validating")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bar, so that the next message has a line of its own."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The postfix while training: stage, on-policy share, loss, reward accuracy, reward margin; short."""
        logged: dict[str, Any] = {**trainer.callback_metrics, **trainer.progress_bar_metrics}
        shown = {
            label: _short(float(value))
            for name, label in METRICS.items()
            if (value := logged.get(f"{name}_step", logged.get(name))) is not None
        }
        return {**_stage(trainer), **shown}

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bar = self.train_progress_bar
        bar.n = trainer.global_step
        metrics = self.get_metrics(trainer, pl_module)
        bar.set_postfix_str(" ".join(f"{name} {value}".strip() for name, value in metrics.items()))


def _stage(trainer: Trainer) -> dict[str, str]:
    """The last decision's stage and share, from whichever callback keeps a history of decisions."""
    for callback in callbacks_of(trainer):
        history = getattr(callback, "history", None)
        if history:
            stage = getattr(history[-1].stage, "value", history[-1].stage)
            return {STAGES.get(stage, stage): "", "on": f"{100 * history[-1].on_policy_share:.0f}%"}
    share = getattr(datamodule_of(trainer), "on_policy_share", None)
    return {} if share is None else {"on": f"{100 * share:.0f}%"}


def _total_steps(trainer: Trainer) -> int | None:
    total = trainer.estimated_stepping_batches
    return None if math.isinf(total) else int(total)


def _short(value: float) -> str:
    """Formats a number with few digits, such as 0.693, 12.3, 1204, 0.001 and 0."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.3f}"
