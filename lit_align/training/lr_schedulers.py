"""Learning-rate schedules that a config can name: with a warm-up, and one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, SequentialLR

__all__ = ["ScheduleSequence", "WarmupSchedule"]

MANY_EPOCHS = 100_000
"""The epochs of a run that something else ends: without an epoch limit Lightning miscounts its totals."""

Shape = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]


class WarmupSchedule(LambdaLR):
    """transformers' schedules by name: from 0 up to the optimizer's learning rate, then on by one of several shapes.

    Args:
        optimizer: given by the module.
        name: the shape of the rate after the warm-up; see `transformers.get_scheduler`.
        num_warmup_steps: optimizer steps of the warm-up, at least 0; None takes `warmup_ratio`.
        warmup_ratio: share of the fit's optimizer steps that is the warm-up, in [0, 1).
        num_training_steps: optimizer steps until the schedule's end; None takes those of the fit.
        options: further arguments of a shape, such as `{"min_lr_rate": 0.1}` for cosine_with_min_lr.

    Raises:
        ValueError: a number is out of its range, or both a number of steps and a ratio are given.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = WarmupSchedule(optimizer, "linear", num_warmup_steps=2, num_training_steps=4)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(schedule.get_last_lr()[0])
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.0, 0.5, 1.0, 0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        name: Shape = "cosine",
        num_warmup_steps: int | None = None,
        warmup_ratio: float = 0.0,
        num_training_steps: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if num_warmup_steps is not None and warmup_ratio:
            raise ValueError(
                f"a warm-up has `num_warmup_steps` ({num_warmup_steps}) or a `warmup_ratio` ({warmup_ratio}): give one"
            )
        if (num_warmup_steps or 0) < 0 or not 0 <= warmup_ratio < 1:
            raise ValueError(
                f"expected num_warmup_steps of at least 0 and warmup_ratio in [0, 1), got {num_warmup_steps} and "
                f"{warmup_ratio}"
            )
        self.name = name
        self.options = dict(options or {})
        self.num_warmup_steps = num_warmup_steps
        self.warmup_ratio = warmup_ratio
        self.num_training_steps = num_training_steps
        super().__init__(optimizer, lambda step: 1.0)
        if num_training_steps is not None:
            self.fit_into(num_training_steps)

    def fit_into(self, steps: int) -> None:
        """Takes a fit's optimizer steps if the schedule has no number of its own, and sets the first rate.

        Raises:
            ValueError: the warm-up is longer than the schedule.
        """
        self.num_training_steps = steps if self.num_training_steps is None else self.num_training_steps
        warmup = self.num_warmup_steps
        warmup = math.ceil(self.warmup_ratio * self.num_training_steps) if warmup is None else warmup
        if warmup > self.num_training_steps:
            raise ValueError(f"the warm-up of {warmup} steps is longer than the {self.num_training_steps} of the fit")
        self.lr_lambdas = [self._factor(float(rate), warmup) for rate in self.base_lrs]
        for group, rate, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = rate * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _factor(self, rate: float, warmup: int) -> Callable[[int], float]:
        """The factor by which transformers' schedule multiplies the rate, as a function of the step."""
        from transformers import get_scheduler

        placeholder = SGD([nn.Parameter(torch.zeros(1))], lr=rate)
        schedule: Any = get_scheduler(
            self.name, placeholder, warmup, self.num_training_steps, scheduler_specific_kwargs=self.options
        )
        factor: Callable[[int], float] = schedule.lr_lambdas[0]
        return factor


class ScheduleSequence(SequentialLR):
    """Several schedulers, one after the other: torch's `SequentialLR` in a form that a config can name.

    Args:
        optimizer: given by the module.
        schedulers: a class and its arguments for each.
        milestones: the optimizer steps at which the second scheduler and each later one begin.
    """

    def __init__(self, optimizer: Optimizer, schedulers: list[LRSchedulerCallable], milestones: list[int]) -> None:
        built: list[Any] = [make(optimizer) for make in schedulers]
        super().__init__(optimizer, built, milestones)


def steps_of_fit(trainer: Trainer) -> int:
    """Optimizer steps until a fit ends.

    Raises:
        ValueError: the fit has no end.
    """
    endless = trainer.max_epochs is None or trainer.max_epochs < 0 or trainer.max_epochs >= MANY_EPOCHS
    if endless and trainer.max_steps > 0:
        return trainer.max_steps
    steps = math.inf if endless else trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ValueError(
            "a schedule over the whole fit needs the fit's end: set trainer.max_steps or trainer.max_epochs, or give "
            "the schedule its `num_training_steps`"
        )
    return int(steps)
