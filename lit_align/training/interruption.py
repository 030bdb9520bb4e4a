"""Interruptions of a fit: between two optimizer steps all state is consistent, within a step it is not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer

from lit_align.console import note
from lit_align.run_parts import accumulates_more

Handler = Callable[[int, FrameType | None], Any] | int | None


def between_steps(trainer: Trainer) -> bool:
    """Whether the weights, the optimizer and the data are as an optimizer step left them.

    True also while the next micro-batch is made or a boundary is measured, which may take minutes.
    """
    micro_batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    done = micro_batches.processed == micro_batches.ready and weights_are_whole(trainer)
    return done and not mid_accumulation(trainer)


def weights_are_whole(trainer: Trainer) -> bool:
    """Whether the weights are as an optimizer step left them, though gradients may have been computed since."""
    steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    return bool(steps.ready == steps.completed) and trainer.global_step > 0


def mid_accumulation(trainer: Trainer) -> bool:
    """Whether only some of an optimizer step's micro-batches have added their gradients."""
    return accumulates_more(trainer)


class DeferredInterrupt:
    """Makes the first Ctrl-C within an optimizer step wait for the step's end; between steps it acts at once.

    :meth:`check` must be called at each step's end. A second Ctrl-C always acts at once.
    """

    def __init__(self) -> None:
        self._former_handler: Handler = None
        self._trainer: Trainer | None = None
        self._pending = False

    def start(self, trainer: Trainer) -> None:
        """Sets the handler. Does nothing outside of the main thread, or if another handler than Python's is set."""
        own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if own and threading.current_thread() is threading.main_thread():
            self._trainer = trainer
            self._pending = False
            self._former_handler = signal.signal(signal.SIGINT, self._on_signal)

    def stop(self) -> None:
        """Puts back the former handler."""
        if self._trainer is not None and signal.getsignal(signal.SIGINT) == self._on_signal:
            signal.signal(signal.SIGINT, self._former_handler)
        self._trainer = None

    def check(self) -> None:
        """Raises the deferred KeyboardInterrupt, if there is one."""
        if self._pending:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        if self._pending or between_steps(self._trainer):
            raise KeyboardInterrupt
        self._pending = True
        note("Stopping after this step. Ctrl-C again stops at once.")
