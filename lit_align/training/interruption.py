"""Interruptions of a fit: Ctrl-C and the signals of clusters act where a step is complete, and not within it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_align.console import note
from lit_align.run_parts import accumulates_more, stops_early

STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""Ctrl-C, what a cluster sends before it ends a job, and what SLURM sends on request some time before that."""
_FREE: tuple[Any, ...] = (None, signal.SIG_DFL, signal.default_int_handler)


class Terminated(SIGTERMException):
    """Ends a process with the shell's number for the signal that stopped it: 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Interruptions(_SignalConnector):
    """Lightning's signal connector, for which a signal waits until Lightning has completed the step.

    Lightning asks for `received_sigterm` exactly there: callbacks and schedulers have run, the step is logged, a
    validation that was due is over. A second signal acts at once, and so does any before the first step, between two
    steps on a single device, after the last one and outside of a fit. What is due at a step's end is done there, too.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._number: int | None = None
        self._raised = False
        self._complete = 0
        self._agreed_at = -1
        self._work: Callable[[], object] | None = None

    def register_signal_handlers(self) -> None:
        """Sets the handlers, at the start of a stage; those that somebody else has set stay."""
        self._original_handlers = self._get_current_signal_handlers()
        self._number = self._work = None
        self._raised = False
        self._agreed_at = -1
        self._complete = self._batches
        for number in STOPPING:
            if signal.getsignal(number) in _FREE:
                self._register_signal(number, self._on_signal)

    @property
    def received_sigterm(self) -> bool:
        """False always; where Lightning asks in a fit, what is due is done, and a signal that waits acts."""
        training = self.trainer.state.fn == TrainerFn.FITTING and self.trainer.training  # a validation asks, too
        if training and not accumulates_more(self.trainer):
            work, self._work = self._work, None
            if work is not None:
                work()
            self._agree()
            self._complete = self._batches
            if self._number is not None and self.stops_together:
                self._raise(self._number)
        return False

    @received_sigterm.setter
    def received_sigterm(self, value: bool) -> None:
        """Does nothing: the parent's constructor sets it."""

    def at_step_end(self, work: Callable[[], object]) -> None:
        """Does something once Lightning has completed the step at hand."""
        self._work = work

    @property
    def stops_together(self) -> bool:
        """Whether all processes stop at this step, so that they can save it; a single one always does."""
        return self.trainer.world_size == 1 or (self._number is not None and self._agreed_at == self._batches)

    @property
    def _batches(self) -> int:
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def _agree(self) -> None:
        """Under DDP a signal to one process stops all of them, at the same step."""
        if self.trainer.world_size == 1 or self._complete == self._batches:
            return
        number = torch.tensor(float(self._number or 0), device=self.trainer.strategy.root_device)
        agreed = int(self.trainer.strategy.reduce(number, reduce_op="max"))
        if agreed:
            self._number = agreed
            self._agreed_at = self._batches

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._raised and self.trainer.interrupted:
            return  # the run is being saved
        if self._number is not None or self._acts_at_once():
            self._raise(number)
        self._number = number
        again = "Ctrl-C again stops" if number == signal.SIGINT else "A second signal stops"
        with suppress(RuntimeError):  # it came while a line was being printed
            note(f"Stopping after this step, and what is due at its end. {again} at once.")

    def _acts_at_once(self) -> bool:
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return True
        return self._complete == self._batches and (self.trainer.world_size == 1 or self._is_over)

    @property
    def _is_over(self) -> bool:
        """Whether the last step of the fit is taken."""
        trainer = self.trainer
        epochs: Any = trainer.fit_loop.epoch_progress.current
        return (
            stops_early(trainer) or trainer.global_step == trainer.max_steps or epochs.processed == trainer.max_epochs
        )

    def _raise(self, number: int) -> None:
        self._number = number
        self._raised = True
        launcher = self.trainer.strategy.launcher
        if launcher is not None and not self.stops_together:
            launcher.kill(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def interruptions_of(trainer: Trainer) -> Interruptions | None:
    """Those of an `AlignmentTrainer`; None for any other."""
    connector = getattr(trainer, "_signal_connector", None)
    return connector if isinstance(connector, Interruptions) else None


def weights_are_whole(trainer: Trainer) -> bool:
    """Whether the weights are as an optimizer step left them, though gradients may have been computed since."""
    steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    return bool(steps.ready == steps.completed) and trainer.global_step > 0


def in_callbacks_of_a_step(trainer: Trainer) -> bool:
    """Whether an optimizer step is taken, and the callbacks at its end are at work."""
    micro_batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    processed = micro_batches.processed == micro_batches.ready == micro_batches.completed + 1
    return processed and not accumulates_more(trainer) and weights_are_whole(trainer)
