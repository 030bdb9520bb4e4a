"""Fused GPU kernels of other packages in the place of a model's own norms, rotary positions and gates."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

_LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""What stays as it is: the head and the loss are lit-align's."""


def demand_kernels(name: str, device: str) -> None:
    """Refuses kernels that cannot run.

    Args:
        name: "liger".
        device: the type of device that they would run on.

    Raises:
        ValueError: it is no GPU.
        ModuleNotFoundError: the package is not installed.
    """
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f'kernels: "{name}" are for GPUs, and this run is on a {device.upper()}: set it to null.')
    if find_spec("liger_kernel") is None:
        raise ModuleNotFoundError(f'kernels: "{name}" needs Liger-Kernel: pip install "lit-align[liger]"')


def use_kernels(model: nn.Module) -> None:
    """Gives a loaded model Liger's RMSNorm, rotary positions and gated MLP (arXiv 2410.10989).

    Liger also changes the module of transformers that the model comes from. What it puts there for models of later is
    taken back; the rotary positions, which are looked up there in each pass, run its kernel on GPUs only. So a judge
    on the CPU runs as before.

    Raises:
        ValueError: Liger has no kernels for this kind of model.
    """
    from liger_kernel.transformers import monkey_patch

    config: Any = model.config
    if config.model_type not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f'kernels: "liger" has none for models of type {config.model_type!r}: set it to null.')
    home = sys.modules[type(model).__module__]
    before = dict(vars(home))
    monkey_patch._apply_liger_kernel_to_instance(model=model, **_LOSSES)
    for name, own in before.items():
        theirs = getattr(home, name)
        if theirs is not own:
            setattr(home, name, own if isinstance(own, type) else _on_gpus(theirs, own))


def _on_gpus(theirs: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is `theirs` for tensors on a GPU, and `own` for others."""
    if hasattr(own, "of_gpus"):  # of an earlier model
        return own

    @wraps(own)
    def choose(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        is_for_them = tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
        return (theirs if is_for_them else own)(tensor, *args, **kwargs)

    choose.of_gpus = theirs  # type: ignore[attr-defined]
    return choose
