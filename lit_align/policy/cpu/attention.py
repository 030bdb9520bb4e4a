"""How the rows of a training step are attended to where torch's own way is slow: on a CPU."""

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
from lit_align.policy.precision import HALF_PRECISIONS, autocast_dtype, dtype_of_products
from lit_align.policy.shared_prompt import FULL, Mask, SharedRows, layer_kinds

LONG_ROW = 512
"""Tokens from which a row is long enough on a CPU to be attended to by segments."""


_MODES: ContextVar[tuple[TorchFunctionMode, ...]] = ContextVar("modes", default=())


@contextmanager
def cheaper_attention(model: nn.Module, rows: SharedRows, mask: Mask | dict[str, Mask]) -> Iterator[None]:
    """For one forward pass of `model` on a CPU; changes nothing on other devices.

    Long rows are attended to by segments. Half precision is attended to in float32, and each row for itself: what is
    rounded then depends neither on the rows beside it nor on whether the pass is differentiated, and a policy that
    equals its reference gives its very log-probs.

    Not where checkpointed layers run again outside of :func:`when_run_again`, as compiled ones do: they must do the
    same again.
    """
    takes_place = rows.ids.device.type == "cpu" and not _layers_run_again_outside(model)
    modes = (Float32Attention(), *_by_rows(model, rows, mask)) if takes_place else ()
    token = _MODES.set(modes)
    try:
        with _inside(modes):
            yield
    finally:
        _MODES.reset(token)


def when_run_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What a checkpointed layer runs in: now, where it is in the right context, and again in the backward."""
    return nullcontext(), _inside(_MODES.get())


@contextmanager
def _inside(modes: tuple[TorchFunctionMode, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def _by_rows(model: nn.Module, rows: SharedRows, mask: Mask | dict[str, Mask]) -> list[RowAttention]:
    """Short rows in float32 stay together: they want few, large kernels, which round 2^16 times finer."""
    config: Any = model.config
    masks = mask if isinstance(mask, dict) else {kind: mask for kind in layer_kinds(config)}
    dense = {kind: one for kind, one in masks.items() if isinstance(one, Tensor) and one.dtype == torch.bool}
    if dtype_of_products(model) not in HALF_PRECISIONS:
        dense = {kind: one for kind, one in dense.items() if kind == FULL and one.shape[-1] >= LONG_ROW}
    return [RowAttention(rows, dense, LONG_ROW)] if dense else []


class Float32Attention(TorchFunctionMode):
    """Inside it, attention in half precision is computed in float32 on a CPU.

    The backward of torch's fused attention takes three times as long in bfloat16 as in float32 there; passes without
    one are a tenth slower and give the same digits. The result is rounded once, to the dtype that it has otherwise:
    autocast's, or that of the inputs.
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


def _layers_run_again_outside(model: nn.Module) -> bool:
    checkpointed = (module for module in model.modules() if getattr(module, "gradient_checkpointing", False))
    return not all(_runs_again_inside(getattr(layer, "_gradient_checkpointing_func", None)) for layer in checkpointed)


def _runs_again_inside(run: Any) -> bool:
    """Whether what checkpoints a layer, or what that calls, was given :func:`when_run_again`."""
    if not isinstance(run, partial):
        return False
    return run.keywords.get("context_fn") is when_run_again or any(map(_runs_again_inside, run.args))
