"""The hyper-parameters that Lightning gives to loggers: a run's configuration in plain types, without secrets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lit_align.checks import is_record
from lit_align.run_parts import callbacks_of, set_logged_hyperparameters

_TRAINER = (
    "max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val", "precision", "world_size",
    "val_check_interval", "check_val_every_n_epoch", "limit_train_batches", "limit_val_batches",
)  # fmt: skip
_SECRET = re.compile(
    r"^token$|(^|_)(api_?key|access_?key|secret|password|credentials?|(api|access|auth|hub|hf|bearer)_token)$", re.I
)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_HIDDEN = "***"


def set_hyperparameters(module: LightningModule, config: Mapping[str, Any]) -> None:
    """Makes Lightning log `config` for a module, instead of hyper-parameters of its own. No checkpoint holds it.

    Args:
        module: the module of the coming fit, validation and so on.
        config: the configuration of the run, in plain types.
    """
    shown = AttributeDict(without_secrets(config))
    set_logged_hyperparameters(module, shown)


def describe_run(trainer: Trainer, model: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run that was written in Python, read from its objects.

    Args:
        trainer: the run's Trainer.
        model: the settings of its module.
    """
    strategy = type(trainer.strategy).__name__
    callbacks = [c for c in callbacks_of(trainer) if not type(c).__module__.startswith("lightning.")]
    run = {
        "model": model,
        "data": getattr(trainer, "datamodule", None),
        "callbacks": callbacks,
        "trainer": {**{name: getattr(trainer, name, None) for name in _TRAINER}, "strategy": strategy},
    }
    described: dict[str, Any] = without_secrets(plain(run))
    return described


def plain(value: Any) -> Any:
    """Converts a value to plain types: an object to its `class_path` and the `init_args` that it keeps by name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if is_record(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if callable(value) and not isinstance(value, nn.Module) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _describe_object(value)


def _describe_object(value: Any) -> Any:
    attributes = {
        name: item for name, item in getattr(value, "__dict__", {}).items() if not isinstance(item, nn.Module)
    }
    settings = {name: plain(attributes[name]) for name in _arguments(type(value)) if name in attributes}
    if not settings and type(value).__str__ is not object.__str__:
        return str(value)  # paths, times
    described: dict[str, Any] = {"class_path": f"{type(value).__module__}.{type(value).__qualname__}"}
    return {**described, "init_args": settings} if settings else described


def _arguments(cls: type) -> list[str]:
    """The names of the arguments of a class and of its bases."""
    names: dict[str, None] = {}  # a set in order
    for base in cls.__mro__:
        if "__init__" in vars(base):
            names.update(dict.fromkeys(inspect.signature(vars(base)["__init__"]).parameters))
    return [name for name in names if name != "self"]


def without_secrets(value: Any, name: str = "") -> Any:
    """Hides values whose names tell of keys, tokens or passwords, and logins within addresses."""
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if isinstance(value, str):
        return _HIDDEN if value and _SECRET.search(name) else _LOGIN.sub(f"{_HIDDEN}@", value)
    return value
