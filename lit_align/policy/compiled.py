"""Compiles a model's layers with `torch.compile` for passes with gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from lit_align.console import note
from lit_align.policy.internals import repeated_layers


def compile_layers(model: nn.Module) -> None:
    """Compiles the repeated layers of `model` at their first pass with gradients, once for all of them.

    Rows of another length do not recompile them. Values are rounded wherever the layers themselves would round them,
    so half precision gives the same numbers with and without compiling. Passes without gradients (sampling, the
    reference, validation) run uncompiled: they come in too many forms to be worth it.

    Args:
        model: a model of transformers, whose `_no_split_modules` names the repeated layers.

    Raises:
        ValueError: it names none.
    """
    layers = repeated_layers(model)
    if not layers:
        raise ValueError(
            f"`compile` compiles a model's repeated layers, but {type(model).__name__} does not say which they are "
            "(its `_no_split_modules` names none): set `compile` to false."
        )
    rank_zero_only(note)(f"compile: {len(layers)} layers are compiled at the first step, which takes about a minute")
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # a method, so that a copy of the layer runs its own weights


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return _eager(layer, *args, **kwargs)
    try:
        return _compiled()(layer, *args, **kwargs)
    except TorchDynamoException as error:
        why = " ".join(str(error).split("Set TORCHDYNAMO_VERBOSE")[0].split()).rstrip(".")
        raise RuntimeError(
            f"torch.compile could not compile a {type(layer).__name__}: {why}. It needs a C++ compiler on a CPU (g++, "
            "clang++, or the environment variable CXX) and Triton on a GPU. model.policy.compile: false trains without."
        ) from error


def _eager(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(_eager, dynamic=True, options={"emulate_precision_casts": True})
