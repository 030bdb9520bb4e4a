"""Optimizer and scheduler of a resumed fit: what the configuration says now counts, and what has changed is said."""

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
"""Where a checkpoint has them."""
_PROGRESS = {
    "last_epoch", "_step_count", "_last_lr", "base_lrs", "best", "num_bad_epochs", "cooldown_counter",
    "_get_lr_called_within_step", "_is_initial",
}  # fmt: skip
"""What a scheduler's state tells of where it stands, or of the optimizer, and not of how it was configured."""

Scheduler = LRScheduler | ReduceLROnPlateau
_say = rank_zero_only(note)


@dataclass(frozen=True)
class OptimizerSettings:
    """How a fit was configured to step, in plain values.

    Args:
        optimizer: name of the class.
        groups: for each group of parameters, its settings.
        scheduler: name of the class; None for none.
        schedule: the scheduler's settings.
    """

    optimizer: str
    groups: list[dict[str, Any]]
    scheduler: str | None = None
    schedule: dict[str, Any] | None = None

    @classmethod
    def of(cls, optimizer: Optimizer) -> OptimizerSettings:
        """Those of an optimizer that no scheduler has touched yet."""
        return cls(type(optimizer).__name__, [_plain(group, {"params"}) for group in optimizer.param_groups])

    def with_scheduler(self, scheduler: Scheduler) -> OptimizerSettings:
        """These, and those of a scheduler that has not been stepped yet."""
        state = _plain(scheduler.state_dict(), _PROGRESS)
        return OptimizerSettings(self.optimizer, self.groups, type(scheduler).__name__, state)

    def as_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)


def carry_on(
    checkpoint: dict[str, Any], settings: OptimizerSettings, optimizer: Optimizer, scheduler: Scheduler | None
) -> None:
    """Changes what a checkpoint brings back of an optimizer and its scheduler to what is configured now.

    Settings of the optimizer count from the checkpoint's step on. A scheduler with other settings, or another base
    rate, stands where it would stand had it been there from the first step. Where nothing is changed the checkpoint
    is left as it is.

    Args:
        checkpoint: as it was read, before the optimizer's state is restored from it.
        settings: as configured now.
        optimizer: as made now.
        scheduler: likewise.

    Raises:
        ValueError: where the state of one optimizer cannot be that of the other, or there is none.
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
    lines = list(dict.fromkeys(_in_words(before, settings, groups)))
    if lines:
        _say(f"Resumed with other settings, from step {checkpoint['global_step']} on: {', '.join(lines)}.")


def _settings_in(checkpoint: Mapping[str, Any], settings: OptimizerSettings) -> OptimizerSettings | None:
    """Those that a checkpoint was made with; None where it does not tell."""
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            "The checkpoint holds weights alone (`save_weights_only`), no state of the optimizer and the data: no run "
            "can go on from it. Resume from one with all state, or evaluate this one with `validate`."
        )
    if KEY not in checkpoint:
        _say("The checkpoint does not say how its optimizer was configured: the settings in its state go on.")
        return None
    before = OptimizerSettings(**checkpoint[KEY])
    if before.optimizer != settings.optimizer or len(before.groups) != len(settings.groups):
        raise ValueError(
            f"The checkpoint holds the state of {_described(before)}, and this configuration has "
            f"{_described(settings)}, which cannot go on from it: resume with the former, or start a fresh run."
        )
    return before


def _described(settings: OptimizerSettings) -> str:
    count = len(settings.groups)
    return f"{settings.optimizer} over {count} group{'s' if count > 1 else ''} of parameters"


def _changed_groups(before: OptimizerSettings, now: OptimizerSettings) -> Iterator[dict[str, tuple[Any, Any]]]:
    """For each group, by setting: what it was and what it is."""
    for old, new in zip(before.groups, now.groups, strict=True):
        yield {key: (old.get(key), value) for key, value in new.items() if old.get(key) != value}


def _place_scheduler(
    checkpoint: dict[str, Any], optimizer: Optimizer, scheduler: Scheduler | None, same_class: bool
) -> None:
    """Puts a scheduler, and the rates that it gives, at the checkpoint's step."""
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


def _in_words(
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
    """What of a state compares and can be saved: numbers, words and collections of them."""
    return {key: plain for key, value in values.items() if key not in without and (plain := _value(value)) is not ...}


def _value(value: Any) -> Any:
    """A plain value, or `...` for what is none."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, list | tuple):
        return [plain for part in value if (plain := _value(part)) is not ...]
    return _plain(value, _PROGRESS) if isinstance(value, Mapping) else ...
