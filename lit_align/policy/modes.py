"""Modes of modules, saved and restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts `model` into eval mode and gives each submodule its own mode back afterwards.

    `model.train()` would not do: a frozen part that was in eval mode would wake up in train mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
