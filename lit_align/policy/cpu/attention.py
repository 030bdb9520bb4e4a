"""Attention for training steps on a CPU, where torch's own is slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_align.policy.cpu.segments import RowAttention
from lit_align.policy.internals import checkpoint_function
from lit_align.policy.precision import HALF_PRECISIONS, autocast_dtype, dtype_of_products
from lit_align.policy.shared_prompt import FULL, Mask, SharedRows, layer_kinds

LONG_ROW = 512
"""Rows of at least this many tokens are attended to by segments."""


_MODES: ContextVar[tuple[TorchFunctionMode, ...]] = ContextVar("modes", default=())


@contextmanager
def cheaper_attention(model: nn.Module, rows: SharedRows, mask: Mask | dict[str, Mask]) -> Iterator[None]:
    """Makes attention cheaper for one forward pass of `model` on a CPU; changes nothing on other devices.

    Long rows are attended to by segments. In half precision, attention is computed in float32 and row by row:
    the rounding then depends neither on the rows beside it nor on whether gradients are computed, and a policy that
    equals its reference gives exactly its log-probs.

    It does nothing if checkpointed layers are recomputed outside of :func:`checkpoint_contexts`, as compiled ones are:
    the recomputation must do the same as the forward.
    """
    is_used = rows.ids.device.type == "cpu" and not _recomputes_outside(model)
    modes = (Float32Attention(), *_row_modes(model, rows, mask)) if is_used else ()
    token = _MODES.set(modes)
    try:
        with _enter_all(modes):
            yield
    finally:
        _MODES.reset(token)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a checkpointed layer's forward, which is inside the modes already, and of its recomputation."""
    return nullcontext(), _enter_all(_MODES.get())


@contextmanager
def _enter_all(modes: tuple[TorchFunctionMode, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def _row_modes(model: nn.Module, rows: SharedRows, mask: Mask | dict[str, Mask]) -> list[RowAttention]:
    """The mode that attends row by row, for the masks that need it.

    Short rows in float32 stay together: few large kernels are faster, and float32 rounds 2^16 times finer.
    """
    config: Any = model.config
    masks = mask if isinstance(mask, dict) else dict.fromkeys(layer_kinds(config), mask)
    dense = {kind: m for kind, m in masks.items() if isinstance(m, Tensor) and m.dtype == torch.bool}
    if dtype_of_products(model) not in HALF_PRECISIONS:
        dense = {kind: m for kind, m in dense.items() if kind == FULL and m.shape[-1] >= LONG_ROW}
    return [RowAttention(rows, dense, LONG_ROW)] if dense else []


class Float32Attention(TorchFunctionMode):
    """A mode in which attention in half precision is computed in float32, on a CPU.

    There the backward of torch's fused attention takes three times as long in bfloat16 as in float32. Passes without a
    backward get a tenth slower; they use it too, so that they give the same digits. The result is rounded once, to
    its usual dtype: autocast's, or that of the inputs.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or len(args) != 3:
            return func(*args, **kwargs)
        dtype = autocast_dtype("cpu") or args[0].dtype
        if dtype not in HALF_PRECISIONS:
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            kwargs = {**kwargs, "attn_mask": mask.float()}
        with torch.autocast("cpu", enabled=False):
            return func(*(tensor.float() for tensor in args), **kwargs).to(dtype)


def _recomputes_outside(model: nn.Module) -> bool:
    checkpointed = (module for module in model.modules() if getattr(module, "gradient_checkpointing", False))
    return not all(_recomputes_inside(checkpoint_function(layer)) for layer in checkpointed)


def _recomputes_inside(run: Any) -> bool:
    """Whether a layer's checkpoint function, or one that it calls, has :func:`checkpoint_contexts`."""
    if not isinstance(run, partial):
        return False
    return run.keywords.get("context_fn") is checkpoint_contexts or any(map(_recomputes_inside, run.args))
