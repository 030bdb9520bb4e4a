"""Attention of shared rows, one prompt or completion after the other: on any device and in any dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_align.policy.precision import HALF_PRECISIONS, autocast_dtype
from lit_align.shared_rows import Layout

BLOCK = 512
"""Queries that attend together: what is held for a span grows with its length, not with its square."""


@dataclass(frozen=True)
class Rule:
    """What a layer's attention does beside the softmax of its scores.

    Args:
        scaling: the factor of the scores; None is 1 / sqrt(head size).
        window: positions that a token sees, its own included; None without a sliding window.
        chunk: tokens of a chunk, if a token sees only those of its own chunk.
        cap: soft-capping of the scores, cap * tanh(score / cap).
        sinks: [heads] a score for each head that takes part in the softmax and has no value.
        dropout: the probability that an attention weight is dropped.
    """

    scaling: float | None = None
    window: int | None = None
    chunk: int | None = None
    cap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0


def attend_span_by_span(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rule: Rule) -> Tensor:
    """Attention by a layout.

    On a CPU half precision is computed in float32, since torch's backward of attention takes three times as long in
    bfloat16, and rounded once. So a row's numbers depend neither on the rows beside it nor on whether gradients are
    computed, and a policy that equals its reference gives exactly its log-probs.

    Args:
        query: [1, heads, T, D].
        key: [1, key heads, T, D].
        value: [1, key heads, T, E].
        layout: which tokens attend to which.
        rule: what else the layer does.

    Returns:
        [1, T, heads, E].
    """
    device = query.device.type
    dtype = autocast_dtype(device) or query.dtype
    exact = torch.float32 if device == "cpu" and dtype in HALF_PRECISIONS else dtype
    if torch.amp.is_autocast_available(device):
        with torch.autocast(device, enabled=False):
            return _attend(query.to(exact), key.to(exact), value.to(exact), layout, rule).to(dtype)
    return _attend(query, key, value, layout, rule)


def _attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rule: Rule) -> Tensor:
    sizes = [span.size for span in layout.spans]
    queries, keys, values = (tensor.split(sizes, 2) for tensor in (query, key, value))
    outputs: list[Tensor] = []
    for i, span in enumerate(layout.spans):
        seen = keys[i], values[i]
        if span.prompt is not None:
            seen = torch.cat([keys[span.prompt], keys[i]], 2), torch.cat([values[span.prompt], values[i]], 2)
        for block in _blocks(span.prompt_size, span.prompt_size + span.size, rule):
            own = queries[i][:, :, block.start - span.prompt_size : block.stop - span.prompt_size]
            visible_keys, visible_values = (tensor[:, :, block.first : block.stop] for tensor in seen)
            outputs.append(_attend_block(own, visible_keys, visible_values, layout, rule).transpose(1, 2))
    return torch.cat(outputs, 1)


@dataclass(frozen=True)
class _Block:
    """Queries at positions from `start` to `stop`, which see none before `first`."""

    start: int
    stop: int
    first: int


def _blocks(start: int, stop: int, rule: Rule) -> Iterator[_Block]:
    """Cuts the queries from `start` to `stop` into blocks, each within a chunk."""
    while start < stop:
        chunk_start = 0 if rule.chunk is None else start // rule.chunk * rule.chunk
        end = min(stop, start + BLOCK, stop if rule.chunk is None else chunk_start + rule.chunk)
        first = chunk_start if rule.window is None else max(chunk_start, start - rule.window + 1)
        yield _Block(start, end, first)
        start = end


def _attend_block(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rule: Rule) -> Tensor:
    """Attention of the last positions of `key`; [1, heads, q, E]."""
    if rule.cap is not None or rule.sinks is not None:  # scores are held: once more in the backward, not for it
        band = _mask(query, key, layout, rule.window)
        return cast(Tensor, checkpoint(_explicit, query, key, value, band, rule, use_reentrant=False))
    is_square = query.shape[2] == key.shape[2] and not _hides(key, rule.window)
    mask = None if is_square else _mask(query, key, layout, rule.window)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=rule.dropout,
        is_causal=is_square,
        scale=rule.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _hides(key: Tensor, window: int | None) -> bool:
    return window is not None and key.shape[2] > window


def _mask(query: Tensor, key: Tensor, layout: Layout, window: int | None) -> Tensor:
    """[q, k] 0 where the i-th of the last q positions sees the j-th of k, else minus infinity.

    It depends on distances alone, so all are the lower right corners of the largest one.
    """
    rows, columns = query.shape[2], key.shape[2]
    key_of_mask = query.device, query.dtype, window
    if key_of_mask not in layout.masks:
        height = min(BLOCK, layout.most_queries)
        width = min(layout.most_keys, layout.most_keys if window is None else height + window - 1)
        layout.masks[key_of_mask] = _band(query, height, width, window)
    whole = layout.masks[key_of_mask]
    return whole[whole.shape[0] - rows :, whole.shape[1] - columns :]


def _band(query: Tensor, height: int, width: int, window: int | None) -> Tensor:
    rows = torch.arange(width - height, width, device=query.device)[:, None]
    distance = rows - torch.arange(width, device=query.device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return query.new_zeros(height, width).masked_fill_(hidden, float("-inf"))


def _explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    """Attention with soft-capped scores and sinks, which torch's own does not have."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    scaling = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    scores = query @ key.transpose(2, 3) * scaling
    if rule.cap is not None:
        scores = rule.cap * torch.tanh(scores / rule.cap)
    scores = (scores + mask).float()
    if rule.sinks is not None:
        sinks = rule.sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = F.dropout(scores.softmax(-1)[..., : key.shape[2]], rule.dropout)
    return weights.to(value.dtype) @ value
