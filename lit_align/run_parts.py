"""The parts of a run that Lightning's Trainer holds and does not declare to type checkers."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

_C = TypeVar("_C", bound=Callback)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks, in the order in which they are called."""
    return list(getattr(trainer, "callbacks", ()))


def find_callback(trainer: Trainer, kind: type[_C]) -> _C | None:
    """The first callback of a kind; None without one."""
    return next((callback for callback in callbacks_of(trainer) if isinstance(callback, kind)), None)


def datamodule_of(trainer: Trainer) -> Any:
    """The data module; None without one."""
    return getattr(trainer, "datamodule", None)


def is_trial(trainer: Trainer) -> bool:
    """Whether it is a trial of a few batches (`fast_dev_run`), which leaves an earlier run's files as they are."""
    return bool(getattr(trainer, "fast_dev_run", False))


def process_rank() -> int:
    """The rank of this process, from its start on: a process that a strategy starts for another rank has it, too."""
    return int(getattr(rank_zero_only, "rank", 0))
