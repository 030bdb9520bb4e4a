"""The progress of a fit in plain lines, for files, job queues and CI."""

from __future__ import annotations

from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lit_align.console import format_duration, note
from lit_align.progress.status import TimeLeft, count_steps, describe_metrics, describe_stage

_MOST_STEPS = 50
_LINES_A_FIT = 20
_LONGEST_SILENCE = 300.0  # seconds


class PlainProgress(ProgressBar):
    """One line every so many optimizer steps, and one for each validation. Decisions have lines of their own.

    Args:
        every_n_steps: optimizer steps between two lines; None is a twentieth of the fit, at most 50 steps, and no
            silence of more than five minutes.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1 optimizer step, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._enabled = True
        self._step = 0
        self._told = 0.0
        self._last_step: int | None = None
        self._time_left = TimeLeft()

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls it on all processes but the first."""
        self._enabled = False

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        if self._enabled:
            note(sep.join(map(str, args)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._last_step = count_steps(trainer)
        self._told = monotonic()
        self._time_left = TimeLeft()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._time_left.pace is None and trainer.global_step == self._step:
            self._time_left.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._time_left.count(trainer)
        if self._enabled and self._is_due():
            self._told = monotonic()
            note(self._describe(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = describe_metrics(trainer, "val/")
        if self._enabled and metrics and not trainer.sanity_checking and trainer.state.fn == "fit":
            note(f"step {trainer.global_step}: validation | {metrics}")

    def _is_due(self) -> bool:
        if self.every_n_steps is not None:
            return self._step % self.every_n_steps == 0
        every = _MOST_STEPS if self._last_step is None else min(_MOST_STEPS, max(1, self._last_step // _LINES_A_FIT))
        return self._step % every == 0 or monotonic() - self._told >= _LONGEST_SILENCE

    def _describe(self, trainer: Trainer) -> str:
        of_all = "" if self._last_step is None else f" of {self._last_step}"
        left = self._time_left.estimate(trainer, self._last_step)
        parts = [
            f"step {self._step}{of_all}",
            describe_stage(trainer),
            describe_metrics(trainer),
            "" if left is None else f"{format_duration(left)} left",
        ]
        return " | ".join(filter(None, parts))
