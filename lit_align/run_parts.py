"""The parts of a run that Lightning's Trainer and modules hold and do not declare, or only under private names.

`tests/test_private_names.py` says which of those an upgrade has taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
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


def accumulates_more(trainer: Trainer) -> bool:
    """Whether an optimizer step still waits for more micro-batches; Lightning keeps that count to itself."""
    return bool(trainer.fit_loop.epoch_loop._should_accumulate())


def validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows this micro-batch at once (`loops/training_epoch_loop.py`, `on_advance_end`)."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and not loop.val_loop.skip and loop._should_check_val_fx(fetcher)


def log_step(trainer: Trainer) -> None:
    """Gives the loggers the row of the optimizer step at hand; Lightning does behind the callbacks of its end."""
    trainer._logger_connector.update_train_step_metrics()


def stops_early(trainer: Trainer) -> bool:
    """Whether a callback has asked to end the fit, such as where its time is up, and it has its least length."""
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def trainer_of(module: LightningModule) -> Trainer | None:
    """The Trainer that a module is in; None without one, of which `module.trainer` makes an error."""
    return module._trainer


def set_logged_hyperparameters(module: LightningModule, values: Mapping[str, Any]) -> None:
    """Makes Lightning give `values` to the loggers. `save_hyperparameters` would put them into checkpoints, too."""
    vars(module).update(_hparams_initial=values, _log_hyperparams=True)


def process_rank() -> int:
    """The rank of this process, from its start on: a process that a strategy starts for another rank has it, too."""
    return int(getattr(rank_zero_only, "rank", 0))
