"""Attention of shared rows on a GPU: flash attention over all prompts and completions at once, without masks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from lit_align.policy.precision import HALF_PRECISIONS, autocast_dtype
from lit_align.policy.span_attention import Rule
from lit_align.shared_rows import Layout


def takes_packed(query: Tensor, value: Tensor, layout: Layout, rule: Rule) -> bool:
    """Whether torch's flash attention for sequences of different lengths takes a layer's heads and its rule."""
    if query.device.type != "cuda" or _varlen() is None:
        return False
    dtype = autocast_dtype("cuda") or query.dtype
    is_plain = rule.cap is None and rule.sinks is None and not rule.dropout
    within_chunk = rule.chunk is None or layout.most_keys <= rule.chunk
    fits = query.shape[-1] == value.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    is_new = torch.cuda.get_device_capability(query.device) >= (8, 0)
    return dtype in HALF_PRECISIONS and is_plain and within_chunk and fits and is_new


def attend_packed(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rule: Rule) -> Tensor:
    """As :func:`~lit_align.policy.span_attention.attend_span_by_span`, in one call for all spans.

    The queries are the row itself. The keys of each span, its prompt's and its own, are gathered behind each other.
    """
    dtype = autocast_dtype(query.device.type) or query.dtype
    query, key, value = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    key, value = (cast(Tensor, _Gather.apply(tensor, layout.keys, layout.uses)) for tensor in (key, value))
    return flash(query, key, value, layout, rule)[None]


def flash(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rule: Rule) -> Tensor:
    """torch's flash attention of all spans: queries [T, heads, D], keys and values [K, key heads, D]."""
    varlen = cast(Callable[..., Tensor], _varlen())
    options: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(varlen).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.10 and 2.11
            groups = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    return varlen(
        query,
        key,
        value,
        layout.query_ends,
        layout.key_ends,
        layout.most_queries,
        layout.most_keys,
        scale=rule.scaling,
        window_size=(-1, 0) if rule.window is None else (rule.window - 1, 0),
        **options,
    )


@cache
def _varlen() -> Callable[..., Tensor] | None:
    """`varlen_attn` with causal windows and a scale; None before torch 2.11."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return cast(Callable[..., Tensor], varlen_attn) if {"window_size", "scale"} <= set(known) else None


class _Gather(torch.autograd.Function):
    """Takes rows of [T, ...] by their index; the backward adds up in a fixed order, for the same digits each time."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, uses: Tensor) -> Tensor:
        ctx.save_for_backward(uses)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (uses,) = ctx.saved_tensors
        (gradient,) = upstream
        padded = torch.cat([gradient, gradient.new_zeros(1, *gradient.shape[1:])])
        return sum(padded.index_select(0, places) for places in uses.unbind(1)), None, None  # type: ignore[return-value]
