"""Forward passes in float32 or float64 for a model in a lower precision, without a second copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

COMPUTE_DTYPE = "compute_dtype"
"""The attribute of a 4-bit layer that holds the dtype of its products."""


@contextmanager
def computed_in(dtype: torch.dtype, model: nn.Module, head: nn.Module) -> Iterator[None]:
    """Computes passes of `model` without gradients in `dtype`, within the block.

    Each layer's weights have that dtype only while it runs. The head, whose copy would be the largest, keeps its own.

    Args:
        dtype: float32 or float64.
        model: a model with weights in any dtype.
        head: the model's output embeddings.
    """
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        device = next(model.parameters()).device.type
        if torch.amp.is_autocast_available(device):
            stack.enter_context(torch.autocast(device, enabled=False))
        of_head = set(head.modules())
        for module in model.modules():
            for handle in _hooks(module, dtype) if module not in of_head else ():
                stack.callback(handle.remove)
        yield


def _hooks(module: nn.Module, dtype: torch.dtype) -> Iterator[Any]:
    if isinstance(module, nn.Embedding):  # a look-up is exact: its few rows are cast, not the whole table
        yield module.register_forward_hook(lambda _, __, rows: rows.to(dtype))
    elif _is_adapted(module) or hasattr(module, COMPUTE_DTYPE) or list(_others(module, dtype)):
        restores: list[Callable[[], None]] = []
        yield module.register_forward_pre_hook(lambda layer, _: restores.append(_swap_weights(layer, dtype)))
        yield module.register_forward_hook(lambda *_: restores.pop()(), always_call=True)


def _swap_weights(unit: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """Puts copies in `dtype` in the place of a layer's weights, and of those below it if it is adapted.

    Returns:
        A function that puts back the original tensors, which optimizer and DDP refer to.
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
    """The module's own floating-point weights in another dtype."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_floating_point() and parameter.dtype != dtype:
            yield name, parameter


def _is_adapted(module: nn.Module) -> bool:
    """Whether the module reads weights of modules below it without calling them, as adapters do."""
    return hasattr(module, "lora_A")
