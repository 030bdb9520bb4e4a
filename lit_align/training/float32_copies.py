"""Float32 copies of weights that are trained in half precision: the optimizer steps these, so small steps count.

A weight in bfloat16 has 8 significant bits: a step below 1/512 of it leaves it as it was, and DPO's usual steps are far
smaller. The model computes with rounded weights; the optimizer and checkpoints keep the full ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_align.console import note
from lit_align.policy.precision import HALF_PRECISIONS

Copies = dict[nn.Parameter, nn.Parameter]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]

_COPIES: WeakKeyDictionary[Optimizer, Copies] = WeakKeyDictionary()


def over_float32(
    make: MakeOptimizer, parameters: Iterable[nn.Parameter], whole: Mapping[nn.Parameter, Tensor] | None = None
) -> Optimizer:
    """Makes an optimizer over float32 copies of the parameters in half precision, and over the others themselves.

    After each of its steps the parameters are the rounded copies. After a backward, :func:`take_gradients` must run.

    Args:
        make: makes an optimizer.
        parameters: the trained parameters.
        whole: initial float32 values of some of them, such as a checkpoint's.
    """
    parameters = list(parameters)
    whole = whole or {}
    copies: Copies = {
        parameter: nn.Parameter(whole.get(parameter, parameter.detach()).to(parameter.device, torch.float32, copy=True))
        for parameter in parameters
        if parameter.dtype in HALF_PRECISIONS
    }
    optimizer = make([copies.get(parameter, parameter) for parameter in parameters])
    if copies:
        _COPIES[optimizer] = copies
        optimizer.register_step_post_hook(_round)
    return optimizer


def copies_of(optimizer: Optimizer) -> Copies:
    """The float32 copy of each parameter in half precision that an optimizer trains."""
    return _COPIES.get(optimizer, {})


@rank_zero_only
def say_copies(optimizer: Optimizer) -> None:
    """Prints a line where an optimizer works on copies, which take memory."""
    copies = copies_of(optimizer)
    if copies:
        size = sum(copy.numel() for copy in copies.values())
        dtypes = " and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in copies}))
        note(
            f"{size:,} trained weights are in {dtypes}, in which small steps are lost: the optimizer works on float32 "
            f"copies of them ({4 * size / (1 << 30):.2f} GiB)."
        )


def take_gradients(optimizer: Optimizer) -> None:
    """Moves the gradients of parameters in half precision to their copies, which add them up in float32."""
    for parameter, copy in copies_of(optimizer).items():
        if parameter.grad is not None:
            gradient = parameter.grad.float()
            parameter.grad = None
            copy.grad = gradient if copy.grad is None else copy.grad.add_(gradient)


def whole_weights(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], weights: Mapping[str, Any]
) -> dict[str, Any]:
    """Replaces weights in half precision by their float32 copies.

    A weight that something else has changed since the optimizer's last step, such as an average over steps, stays.

    Args:
        optimizer: trains some of the weights.
        names: the names of its parameters.
        weights: weights by name.
    """
    copies = {names[parameter]: copy.detach() for parameter, copy in copies_of(optimizer).items() if parameter in names}
    return {
        name: copies[name] if name in copies and torch.equal(copies[name].to(value.dtype), value) else value
        for name, value in weights.items()
    }


@torch.no_grad()
def _round(optimizer: Optimizer, *_: Any) -> None:
    for parameter, copy in copies_of(optimizer).items():
        parameter.copy_(copy)
