"""How much of a run's time goes into measuring."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from lightning.pytorch import Trainer

from lit_align.boundary.result import Decision
from lit_align.console import note

_LOOKED_AT = 10_000
"""Steps of which it is asked whether a measurement is due; of a longer run the others are taken to be like them."""


class MeasuringBudget:
    """Counts the seconds of training and of measuring, and says whether one more measurement can be afforded.

    Training time is the wall time of the fit without its measurements. The count goes on through a resume.

    Args:
        max_share: measuring time over training time, at most; None is no limit.
        clock: gives seconds.

    Example:
        >>> now = [0.0]
        >>> budget = MeasuringBudget(0.1, clock=lambda: now[0])
        >>> budget.start()
        >>> budget.spend(3.0)  # the first measurement
        >>> now[0] = 33.0  # 3 s of it were measuring
        >>> budget.share, budget.affords()  # another 3 s would make 6 s on 30 s
        (0.1, False)
        >>> now[0] = 63.0
        >>> budget.affords()
        True
    """

    def __init__(self, max_share: float | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        if max_share is not None and not max_share > 0:
            raise ValueError(
                f"max_share_of_training must be above 0, such as 0.02, or null for no limit; got {max_share}"
            )
        self.max_share = max_share
        self.measuring = 0.0
        self.last: float | None = None
        self._clock = clock
        self._before = 0.0  # wall time of the fit up to the checkpoint that it went on from
        self._started: float | None = None
        self._waiting = False

    def start(self) -> None:
        """The fit begins or goes on now."""
        self._started = self._clock()
        self._waiting = False

    @property
    def training(self) -> float:
        """Seconds of training so far."""
        return max(0.0, self._elapsed() - self.measuring)

    @property
    def share(self) -> float | None:
        """Measuring time over training time so far; None before any training."""
        return self.measuring / self.training if self.training > 0 else None

    def affords(self) -> bool:
        """Whether a measurement as long as the last one would stay within the limit; the first is always taken."""
        if self.max_share is None or self.last is None:
            return True
        return self.measuring + self.last <= self.max_share * self.training

    def affords_on_all_ranks(self, trainer: Trainer) -> bool:
        """The same on every rank, by the clock of the first; says it once where measurements begin to wait."""
        if self.max_share is None or self.last is None:
            return True
        affords = bool(trainer.strategy.broadcast(self.affords()))
        if not affords and not self._waiting and trainer.is_global_zero:
            note(
                f"boundary: step {trainer.global_step} | not measured: {self.last:.0f} s more would be over "
                f"{100 * self.max_share:g} % of the training time; it waits, as later ones do"
            )
        self._waiting = self._waiting or not affords
        return affords

    def spend(self, seconds: float) -> None:
        """Counts a measurement that has ended."""
        self.measuring += seconds
        self.last = seconds

    def reset(self) -> None:
        """Forgets everything: a fit begins anew."""
        self.measuring = 0.0
        self.last = None
        self._before = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self._elapsed(), "measuring": self.measuring, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state["elapsed"]
        self.measuring = state["measuring"]
        self.last = state["last"]

    def _elapsed(self) -> float:
        return self._before + (0.0 if self._started is None else self._clock() - self._started)


def expected_seconds(history: Sequence[Decision], should_measure: Callable[[int], bool], steps: range) -> float:
    """The wall time that the measurements at `steps` will take, if they are like the last three.

    Args:
        history: the decisions so far.
        should_measure: whether a measurement is due after a step.
        steps: the optimizer steps that are still to come.
    """
    measured = [decision.seconds for decision in history if decision.measured][-3:]
    if not measured or not steps:
        return 0.0
    near = steps[:_LOOKED_AT]
    due = sum(map(should_measure, near)) * len(steps) / len(near)
    return due * fmean(measured)
