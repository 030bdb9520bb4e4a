"""Saves and restores the train and eval modes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts `model` into eval mode and gives each submodule its own mode back afterwards.

    `model.train()` afterwards would be wrong: it would put a frozen part into train mode, too.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
