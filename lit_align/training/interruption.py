"""Where in a fit an interruption comes: between two optimizer steps all state is whole, within one it is not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer

from lit_align.console import note

Handler = Callable[[int, FrameType | None], Any] | int | None


def between_steps(trainer: Trainer) -> bool:
    """Whether the weights, the optimizer and the data are as an optimizer step left them.

    True also while the next micro-batch is made or a boundary is measured, which may take minutes.
    """
    loop = trainer.fit_loop.epoch_loop
    micro_batches: Any = loop.batch_progress.current
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    done = micro_batches.processed == micro_batches.ready and steps.ready == steps.completed
    return done and trainer.global_step > 0 and not mid_accumulation(trainer)


def mid_accumulation(trainer: Trainer) -> bool:
    """Whether gradients of a part of an optimizer step's micro-batches are being kept."""
    return bool(trainer.fit_loop.epoch_loop._should_accumulate())


class StepFirst:
    """Lets the first Ctrl-C within an optimizer step wait for the step's end; one between steps acts at once.

    :meth:`check` has to be called at each step's end. A second Ctrl-C always acts at once.
    """

    def __init__(self) -> None:
        self._before: Handler = None
        self._trainer: Trainer | None = None
        self._asked = False

    def start(self, trainer: Trainer) -> None:
        """Listens. Does nothing outside of the main thread, or where another handler than Python's own is set."""
        own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if own and threading.current_thread() is threading.main_thread():
            self._trainer = trainer
            self._asked = False
            self._before = signal.signal(signal.SIGINT, self._on_signal)

    def stop(self) -> None:
        """Puts the former handler back."""
        if self._trainer is not None and signal.getsignal(signal.SIGINT) == self._on_signal:
            signal.signal(signal.SIGINT, self._before)
        self._trainer = None

    def check(self) -> None:
        """Raises the KeyboardInterrupt that waited."""
        if self._asked:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        if self._asked or between_steps(self._trainer):
            raise KeyboardInterrupt
        self._asked = True
        note("Stopping after this step. Ctrl-C again stops at once.")
