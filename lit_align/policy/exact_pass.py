"""A forward pass in float32 or float64 of a model whose weights are rounder, without a second copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

COMPUTE_DTYPE = "compute_dtype"
"""The attribute of a 4-bit layer that says what it multiplies in."""


@contextmanager
def computed_in(dtype: torch.dtype, model: nn.Module, head: nn.Module) -> Iterator[None]:
    """Inside it passes of `model` without gradients are computed in `dtype`.

    Each layer's weights are of that dtype while it runs and no longer, those of the head until the end.

    Args:
        dtype: float32 or float64.
        model: with weights in any dtype.
        head: the model's output embeddings, whose weights are also read outside of its own forward pass.
    """
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        device = next(model.parameters()).device.type
        if torch.amp.is_autocast_available(device):
            stack.enter_context(torch.autocast(device, enabled=False))
        for module in model.modules():
            for handle in _hooks(module, dtype):
                stack.callback(handle.remove)
        stack.callback(_swap_weights(head, dtype))
        yield


def _hooks(module: nn.Module, dtype: torch.dtype) -> Iterator[Any]:
    if isinstance(module, nn.Embedding):  # a look-up is exact: its few rows are cast, not the whole table
        yield module.register_forward_hook(lambda _, __, rows: rows.to(dtype))
    elif _is_adapted(module) or hasattr(module, COMPUTE_DTYPE) or list(_others(module, dtype)):
        restores: list[Callable[[], None]] = []
        yield module.register_forward_pre_hook(lambda one, _: restores.append(_swap_weights(one, dtype)))
        yield module.register_forward_hook(lambda *_: restores.pop()(), always_call=True)


def _swap_weights(unit: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """Puts copies of that dtype in the place of a layer's weights, below it too where it is adapted.

    Returns:
        What puts back the weights: the very tensors that optimizer and DDP know.
    """
    restores: list[Callable[[], None]] = []
    for module in unit.modules():
        for name, parameter in list(_others(module, dtype)):
            restores.append(partial(module._parameters.__setitem__, name, parameter))
            module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
        if getattr(module, COMPUTE_DTYPE, None) is not None:
            restores.append(partial(setattr, module, COMPUTE_DTYPE, getattr(module, COMPUTE_DTYPE)))
            setattr(module, COMPUTE_DTYPE, dtype)

    def restore() -> None:
        for put_back in restores:
            put_back()

    return restore


def _others(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, nn.Parameter]]:
    """The module's own weights that are numbers of another dtype."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_floating_point() and parameter.dtype != dtype:
            yield name, parameter


def _is_adapted(module: nn.Module) -> bool:
    """Whether the module reads weights of modules below it without calling them, as adapters do."""
    return hasattr(module, "lora_A")
