"""Checkpoints from which a run resumes exactly."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_align.clock import timed
from lit_align.console import note
from lit_align.run_parts import accumulates_more, log_step, stops_early, validates_next
from lit_align.training.checkpoint_io import save_and_keep_previous, write_durably
from lit_align.training.interruption import in_callbacks_of_a_step, interruptions_of


class AlignmentCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` whose files resume bit by bit.

    It differs from its parent in five ways. It never saves while gradients are being accumulated, since they are
    not in the file. If a validation is due at the same step, it saves after it, since a resumed run would skip it. It
    keeps the step of its last save in its own state, so that a resumed run does not save again at once. It writes to a
    temporary file beside the target and renames it, so that a full disk or a kill leaves the previous checkpoint
    whole, and that one is kept. The last optimizer step of a run is always saved, and so is the step at which Ctrl-C,
    SIGTERM or, on a single device, an error ends the run, unless that comes in the middle of a step. A signal waits for
    the step's end.

    Args:
        dirpath: folder of the checkpoints; `AlignmentTrainer` sets it to `checkpoints/` of the run folder.
        filename: name of the best or periodic files, without ending; see `ModelCheckpoint`.
        monitor: a logged metric whose best checkpoints are kept, such as `val/loss`; None keeps the latest only.
        mode: "min" if a lower value of the monitored metric is better, "max" if a higher one is.
        every_n_train_steps: optimizer steps between two checkpoints.
        train_time_interval: time between two checkpoints, instead of `every_n_train_steps`.
        save_last: keeps `last.ckpt`; without it `--ckpt_path last` takes the newest of the other files.
        keep_previous: keeps the file that `last.ckpt` replaces, as `last-previous.ckpt`: if a disk damages one of them,
            `--ckpt_path last` takes the other.
        save_top_k: number of checkpoints to keep beside `last.ckpt`; None means 0 without a monitor, 1 with one.
        save_weights_only: leaves out optimizer, data and boundary state; such a file cannot be resumed.
        verbose: says on the terminal when a checkpoint is written.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        save_last: bool = True,
        keep_previous: bool = True,
        save_top_k: int | None = None,
        save_weights_only: bool = False,
        verbose: bool = False,
    ) -> None:
        if every_n_train_steps is None and train_time_interval is None:
            every_n_train_steps = 50
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            save_last=save_last,
            save_top_k=save_top_k if save_top_k is not None else int(monitor is not None),
            save_weights_only=save_weights_only,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
            auto_insert_metric_name="/" not in (monitor or ""),
            verbose=verbose,
        )
        self.keep_previous = keep_previous
        self._due_after_validation = False
        self._step_end: _StepEnd | None = None
        self._metrics: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        write_durably(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if accumulates_more(trainer):
            return
        due = not self._should_skip_saving_checkpoint(trainer) and self._due(trainer)
        if validates_next(trainer):
            self._due_after_validation = due
        else:
            self._end_step(trainer, due)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not accumulates_more(trainer):
            self._end_step(trainer, self._due_after_validation)
            self._due_after_validation = False

    def _end_step(self, trainer: Trainer, due: bool) -> None:
        """Remembers how a run goes on from here, and saves it once the step is logged, too."""
        self._step_end = _StepEnd.of(trainer)
        if not due:
            return
        interruptions = interruptions_of(trainer)
        if interruptions is None:
            self._save(trainer)
        else:
            interruptions.at_step_end(lambda: self._save(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the loops as the hooks at the step's end saw them: from a later state Lightning goes on otherwise."""
        if self._step_end is not None and self._step_end.is_now(trainer):
            checkpoint["loops"]["fit_loop"] = self._step_end.fit_loop

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does nothing: an epoch's end is no better a moment than any other step."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last step if it is not saved yet, as after an early stop."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.save_interrupted(trainer, exception)

    def save_interrupted(self, trainer: Trainer, exception: BaseException) -> None:
        """Saves the last whole step of a fit that ends early. On several devices only where all of them end with it."""
        if self._should_skip_saving_checkpoint(trainer) or not self._is_whole(trainer, exception):
            return
        try:
            if in_callbacks_of_a_step(trainer):
                log_step(trainer)  # a run that goes on behind this step never comes to it
            self._save(trainer)
        except Exception as error:  # such as a full disk; the run's own error goes on
            note(f"Step {trainer.global_step} could not be saved: {error}")

    def _is_whole(self, trainer: Trainer, exception: BaseException) -> bool:
        """Whether a run can go on from the state at hand as if it had not been stopped."""
        interruptions = interruptions_of(trainer)
        together = trainer.world_size == 1 or (interruptions is not None and interruptions.stops_together)
        complete = self._step_end is not None and self._step_end.is_now(trainer)
        # Such as a judge that went away: what is due at a step is done by a resumed run, if it was not done before.
        in_callbacks = (
            isinstance(exception, Exception) and in_callbacks_of_a_step(trainer) and not validates_next(trainer)
        )
        return together and (complete or in_callbacks)

    @property
    def saved_step(self) -> int:
        """Optimizer step of the newest checkpoint; 0 without one."""
        return self._last_global_step_saved

    def state_dict(self) -> dict[str, Any]:
        last = {"last_global_step_saved": self._last_global_step_saved}
        return {**super().state_dict(), **last, "metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._metrics = dict(state_dict.get("metrics", {}))
        self._last_global_step_saved = state_dict.get("last_global_step_saved", self._last_global_step_saved)

    def _due(self, trainer: Trainer) -> bool:
        if trainer.global_step == trainer.max_steps or stops_early(trainer) or _last_batch_of_fit(trainer):
            return True
        if self._train_time_interval is None:
            return trainer.global_step % self._every_n_train_steps == 0
        return self._time_is_up(trainer, self._train_time_interval)

    def _time_is_up(self, trainer: Trainer, interval: timedelta) -> bool:
        now = time.monotonic()
        since = now - (self._last_time_checked if self._last_time_checked is not None else now)
        if not trainer.strategy.broadcast(since >= interval.total_seconds()):  # ranks must agree
            return False
        self._last_time_checked = now
        return True

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        """As the parent's, with those from before a resume that have no later value: a run that goes on ranks alike."""
        self._metrics |= {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        return {**self._metrics, **super()._monitor_candidates(trainer)}

    def _save(self, trainer: Trainer) -> None:
        metrics = self._monitor_candidates(trainer)
        saved_before = self._last_global_step_saved
        self._last_global_step_saved = trainer.global_step  # before the files are written: it is part of them
        for logger in trainer.loggers:
            logger.save()
        try:
            if self.monitor is None or self.monitor in metrics:
                self._save_topk_checkpoint(trainer, metrics)
            self._save_last_checkpoint(trainer, metrics)
        except BaseException:
            self._last_global_step_saved = saved_before
            raise

    @timed("saving")
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if self.keep_previous and filepath == self.last_model_path:
            save_and_keep_previous(trainer, Path(filepath), self.save_weights_only)
        else:
            trainer.save_checkpoint(filepath, self.save_weights_only)
        trainer.strategy.barrier("AlignmentCheckpoint")
        self._last_checkpoint_saved = filepath

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self.save_last:
            self.last_model_path = self.format_checkpoint_name(monitor_candidates, self.CHECKPOINT_NAME_LAST)
            self._save_checkpoint(trainer, self.last_model_path)


@dataclass(frozen=True)
class _StepEnd:
    """Where a fit was when an optimizer step and the validation due at it had ended."""

    batches: int
    fit_loop: dict[str, Any]

    @classmethod
    def of(cls, trainer: Trainer) -> _StepEnd:
        return cls(_batches(trainer), deepcopy(trainer.fit_loop.state_dict()))

    def is_now(self, trainer: Trainer) -> bool:
        return self.batches == _batches(trainer)


def _batches(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def _last_batch_of_fit(trainer: Trainer) -> bool:
    loop = trainer.fit_loop
    last_epoch = loop.max_epochs is not None and trainer.current_epoch + 1 == loop.max_epochs
    return last_epoch and bool(loop.epoch_loop.batch_progress.is_last_batch)
