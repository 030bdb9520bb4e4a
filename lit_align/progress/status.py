"""What is shown of a fit: the stage, the boundary score, the metrics that tell whether training works, the time."""

from __future__ import annotations

import math
from collections import deque
from time import perf_counter
from typing import Any

from lightning.pytorch import Trainer

from lit_align.clock import CLOCK
from lit_align.run_parts import callbacks_of, datamodule_of

METRICS = {"loss": "loss", "rewards/accuracies": "acc", "rewards/margins": "margin"}
_RECENT_STEPS = 50
_BESIDE_TRAINING = ("measuring", "win_rate")
"""Activities that callbacks announce themselves."""


def describe_stage(trainer: Trainer) -> str:
    """The stage and the on-policy share in force, such as `injection, 0 % on-policy`; empty where there is none."""
    decision = _last_decision(trainer)
    share = getattr(datamodule_of(trainer), "on_policy_share", None)
    if decision is None:
        return "" if share is None else f"{100 * share:.0f} % on-policy"
    stage = getattr(decision.stage, "value", decision.stage)
    return f"{stage.replace('_', '-')}, {100 * decision.on_policy_share:.0f} % on-policy"


def describe_score(trainer: Trainer) -> str:
    """The last measured boundary score with its interval; empty before the first."""
    measured = [decision for decision in _history(trainer) if getattr(decision, "score", None) is not None]
    if not measured:
        return ""
    last = measured[-1]
    return f"score {last.score:.2f} [{last.low:.2f}, {last.high:.2f}]"


def describe_metrics(trainer: Trainer, prefix: str = "") -> str:
    """The loss, reward accuracy and reward margin of the last step, as far as they are logged."""
    logged: dict[str, Any] = {**trainer.callback_metrics, **trainer.progress_bar_metrics}
    shown = [
        f"{label} {format_short(float(value))}"
        for name, label in METRICS.items()
        if (value := logged.get(f"{prefix}{name}_step", logged.get(f"{prefix}{name}"))) is not None
    ]
    return " ".join(shown)


def count_steps(trainer: Trainer) -> int | None:
    """The optimizer steps of the whole fit; None if there is no end in steps."""
    total = trainer.estimated_stepping_batches
    return None if math.isinf(total) else int(total)


def format_short(value: float) -> str:
    """Formats a number with few digits, such as 0.693, 12.3, 1204, 0.001 and 0."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.3f}"


class TimeLeft:
    """Estimates how long a fit still takes.

    The steps that are left, at the pace of the last ones without the measurements among them; and what callbacks
    announce: each may have a method `seconds_to_come(step, last_step)`.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=_RECENT_STEPS)

    def start(self, trainer: Trainer) -> None:
        """The first step begins now."""
        self._steps.clear()
        self.count(trainer)

    def count(self, trainer: Trainer) -> None:
        """An optimizer step has ended now."""
        self._steps.append((trainer.global_step, perf_counter() - _seconds_beside_training()))

    @property
    def pace(self) -> float | None:
        """Seconds a step, without measurements; None before the first step's end."""
        if len(self._steps) < 2 or self._steps[-1][0] == self._steps[0][0]:
            return None
        (first, began), (last, ended) = self._steps[0], self._steps[-1]
        return max(0.0, ended - began) / (last - first)

    def estimate(self, trainer: Trainer, last_step: float | None) -> float | None:
        """Seconds until the fit ends; None while there is nothing to tell it by."""
        if self.pace is None or last_step is None:
            return None
        step = trainer.global_step
        announced = (getattr(callback, "seconds_to_come", None) for callback in callbacks_of(trainer))
        coming = sum(seconds(step, last_step) for seconds in announced if seconds is not None)
        return self.pace * (last_step - step) + coming


def _seconds_beside_training() -> float:
    return sum(seconds for path, seconds in CLOCK.seconds.items() if path.split("/")[0] in _BESIDE_TRAINING)


def _last_decision(trainer: Trainer) -> Any:
    history = _history(trainer)
    return history[-1] if history else None


def _history(trainer: Trainer) -> list[Any]:
    """The decisions of whichever callback keeps them."""
    histories = (getattr(callback, "history", None) for callback in callbacks_of(trainer))
    return next((list(history) for history in histories if history), [])
