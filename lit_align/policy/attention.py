"""How the rows of a training step are attended to where torch's own way is slow: on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_align.policy.precision import HALF_PRECISIONS, autocast_dtype
from lit_align.policy.segments import SegmentAttention
from lit_align.policy.shared_prompt import FULL, Mask, SharedRows, layer_kinds

ON_CPU = ("cpu", "meta")
"""Devices that are attended on as on a CPU: in the plan of a run there, too."""
LONG_ROW = 512
"""Tokens from which a row is long enough on a CPU to be attended to by segments."""


@contextmanager
def cheaper_attention(model: nn.Module, rows: SharedRows, mask: Mask | dict[str, Mask]) -> Iterator[None]:
    """For one forward pass of `model` on a CPU; changes nothing on other devices.

    Half precision is attended to in float32, and long rows by segments.

    Not where layers are checkpointed: they run again outside of the context and must do the same.
    """
    if rows.ids.device.type not in ON_CPU or _layers_run_again(model):
        yield
        return
    with Float32Attention(), _by_segments(model, rows, mask):
        yield


def _by_segments(model: nn.Module, rows: SharedRows, mask: Mask | dict[str, Mask]) -> AbstractContextManager[object]:
    """In long rows, where dense attention costs what its mask leaves out, too. Short ones want few, large kernels."""
    config: Any = model.config
    masks = mask if isinstance(mask, dict) else {kind: mask for kind in layer_kinds(config)}
    full = masks.get(FULL)
    if not isinstance(full, Tensor) or full.dtype != torch.bool or full.shape[-1] < LONG_ROW:
        return nullcontext()
    return SegmentAttention(rows, full)


class Float32Attention(TorchFunctionMode):
    """Inside it, attention that will be differentiated is computed in float32 on a CPU, whatever its inputs are.

    The backward of torch's fused attention takes three times as long in bfloat16 as in float32 there. The result is
    rounded once, to the dtype that it has otherwise: autocast's, or that of the inputs.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or len(args) != 3:
            return func(*args, **kwargs)
        dtype = autocast_dtype("cpu") or args[0].dtype
        if dtype not in HALF_PRECISIONS or not any(tensor.requires_grad for tensor in args):
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            kwargs = {**kwargs, "attn_mask": mask.float()}
        with torch.autocast("cpu", enabled=False):
            return func(*(tensor.float() for tensor in args), **kwargs).to(dtype)


def _layers_run_again(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
