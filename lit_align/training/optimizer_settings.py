"""Optimizer and scheduler of a resumed fit: the current configuration counts, and changes to it are reported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_align.console import note

KEY = "optimizer_settings"
"""The key of the settings in a checkpoint."""
_PROGRESS = {
    "last_epoch", "_step_count", "_last_lr", "base_lrs", "best", "num_bad_epochs", "cooldown_counter",
    "_get_lr_called_within_step", "_is_initial",
}  # fmt: skip
"""Entries of a scheduler's state that tell of its progress, or of the optimizer, not of its configuration."""

Scheduler = LRScheduler | ReduceLROnPlateau
_say = rank_zero_only(note)


@dataclass(frozen=True)
class OptimizerSettings:
    """How a fit's optimizer and scheduler were configured, in plain values.

    Args:
        optimizer: name of the optimizer's class.
        groups: the settings of each group of parameters.
        scheduler: name of the scheduler's class; None without a scheduler.
        schedule: the scheduler's settings.
    """

    optimizer: str
    groups: list[dict[str, Any]]
    scheduler: str | None = None
    schedule: dict[str, Any] | None = None

    @classmethod
    def of(cls, optimizer: Optimizer) -> OptimizerSettings:
        """Reads the settings of an optimizer that no scheduler has changed yet."""
        return cls(type(optimizer).__name__, [_plain(group, {"params"}) for group in optimizer.param_groups])

    def with_scheduler(self, scheduler: Scheduler) -> OptimizerSettings:
        """These settings with those of a scheduler that has not been stepped yet."""
        state = _plain(scheduler.state_dict(), _PROGRESS)
        return OptimizerSettings(self.optimizer, self.groups, type(scheduler).__name__, state)

    def as_state(self) -> dict[str, Any]:
        """The settings as a checkpoint holds them."""
        return asdict(self)


def carry_on(
    checkpoint: dict[str, Any], settings: OptimizerSettings, optimizer: Optimizer, scheduler: Scheduler | None
) -> None:
    """Changes the state of the optimizer and the scheduler in a checkpoint to the current configuration.

    Settings of the optimizer count from the checkpoint's step on. A scheduler with other settings, or another base
    rate, continues as if it had been there from the first step. If no setting has changed, the checkpoint stays as it
    is.

    Args:
        checkpoint: the checkpoint as read, before the optimizer's state is restored from it.
        settings: the settings as configured now.
        optimizer: the newly made optimizer.
        scheduler: the newly made scheduler; None without one.

    Raises:
        ValueError: the checkpoint has no optimizer state, or that of an optimizer of another kind.
    """
    before = _settings_in(checkpoint, settings)
    if before is None:
        return
    groups = list(_changed_groups(before, settings))
    rate_changed = any("lr" in changed for changed in groups)
    scheduler_changed = (before.scheduler, before.schedule) != (settings.scheduler, settings.schedule)
    for state, changed in zip(checkpoint["optimizer_states"][0]["param_groups"], groups, strict=True):
        state.update({key: now for key, (_, now) in changed.items()})
    if rate_changed or scheduler_changed:
        _place_scheduler(checkpoint, optimizer, scheduler, before.scheduler == settings.scheduler)
    lines = list(dict.fromkeys(_describe_changes(before, settings, groups)))
    if lines:
        _say(f"Resumed with other settings, from step {checkpoint['global_step']} on: {', '.join(lines)}.")


def _settings_in(checkpoint: Mapping[str, Any], settings: OptimizerSettings) -> OptimizerSettings | None:
    """The settings that a checkpoint was made with; None if it does not hold them."""
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            "The checkpoint holds only weights (`save_weights_only`), no state of the optimizer and the data: no run "
            "can resume from it. Resume from one with all state, or evaluate this one with `validate`."
        )
    if KEY not in checkpoint:
        _say("The checkpoint does not say how its optimizer was configured: the settings in its state go on.")
        return None
    before = OptimizerSettings(**checkpoint[KEY])
    if before.optimizer != settings.optimizer or len(before.groups) != len(settings.groups):
        raise ValueError(
            f"The checkpoint holds the state of {_describe(before)}, and this configuration has "
            f"{_describe(settings)}, which cannot go on from it: resume with the former, or start a fresh run."
        )
    return before


def _describe(settings: OptimizerSettings) -> str:
    count = len(settings.groups)
    return f"{settings.optimizer} over {count} group{'s' if count > 1 else ''} of parameters"


def _changed_groups(before: OptimizerSettings, now: OptimizerSettings) -> Iterator[dict[str, tuple[Any, Any]]]:
    """The changed settings of each group by name, each with its old and its new value."""
    for old, new in zip(before.groups, now.groups, strict=True):
        yield {key: (old.get(key), value) for key, value in new.items() if old.get(key) != value}


def _place_scheduler(
    checkpoint: dict[str, Any], optimizer: Optimizer, scheduler: Scheduler | None, same_class: bool
) -> None:
    """Brings a scheduler, and the rates that it gives, to the checkpoint's step."""
    if isinstance(scheduler, ReduceLROnPlateau):
        before = checkpoint["lr_schedulers"][0] if same_class else {}
        own = {key: value for key, value in scheduler.state_dict().items() if key not in _PROGRESS}
        checkpoint["lr_schedulers"] = [{**scheduler.state_dict(), **before, **own}]
        if same_class:
            return  # the rate stays reduced, unless another one is configured
    elif scheduler is not None:
        _advance(scheduler, checkpoint["global_step"])
        checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    else:
        checkpoint["lr_schedulers"] = []
    for state, group in zip(checkpoint["optimizer_states"][0]["param_groups"], optimizer.param_groups, strict=True):
        state.pop("initial_lr", None)
        state.update({key: value for key, value in group.items() if key != "params"})


def _advance(scheduler: LRScheduler, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the optimizer's steps between
        for _ in range(steps):
            scheduler.step()


def _describe_changes(
    before: OptimizerSettings, now: OptimizerSettings, groups: list[dict[str, tuple[Any, Any]]]
) -> Iterator[str]:
    for changed in groups:
        yield from (f"{key} {old} -> {new}" for key, (old, new) in changed.items())
    if before.scheduler != now.scheduler:
        yield f"scheduler {before.scheduler or 'none'} -> {now.scheduler or 'none'}"
    elif before.schedule != now.schedule:
        old = before.schedule or {}
        new = now.schedule or {}
        for key in sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
            yield f"{key} of {now.scheduler} {old.get(key)} -> {new.get(key)}"


def _plain(values: Mapping[str, Any], without: set[str]) -> dict[str, Any]:
    """The entries of a state that can be compared and saved: numbers, strings and collections of them."""
    return {key: plain for key, value in values.items() if key not in without and (plain := _value(value)) is not ...}


def _value(value: Any) -> Any:
    """Converts to a plain value; `...` if it has none."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, list | tuple):
        return [plain for part in value if (plain := _value(part)) is not ...]
    return _plain(value, _PROGRESS) if isinstance(value, Mapping) else ...
