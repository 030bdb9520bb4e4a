"""How much of a run's time goes into measuring."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


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

    def start(self) -> None:
        """The fit begins or goes on now."""
        self._started = self._clock()

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
