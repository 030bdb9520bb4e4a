"""Attention of rows that share a prompt: each for itself, and of long ones only where tokens see each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lit_align.policy.shared_prompt import FULL, PADDING, SharedRows


class RowAttention(TorchFunctionMode):
    """Inside it, dense attention under one of the masks is replaced by attention row by row.

    A row is then computed in the same way whatever rows stand beside it and however wide they are. Most of a long
    row's mask is empty: the prompt sees no completion, completions do not see each other. There the prompt attends to
    itself and each completion to the prompt and itself. Attention under any other mask takes its usual way.

    Args:
        rows: the layout.
        masks: [B, 1, T, T] bool by kind of layer, the very tensors that the model is given.
        long_row: tokens from which a row is attended to by segments in layers without a window.
    """

    def __init__(self, rows: SharedRows, masks: Mapping[str, Tensor], long_row: int) -> None:
        super().__init__()
        self._masks = list(masks.values())
        self._rows = {
            id(mask): [_row(segments, mask[b : b + 1], kind, long_row) for b, segments in enumerate(rows.segments)]
            for kind, mask in masks.items()
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        mask = kwargs.get("attn_mask")
        if func is F.scaled_dot_product_attention and len(args) == 3 and any(mask is one for one in self._masks):
            rest = {key: value for key, value in kwargs.items() if key not in ("attn_mask", "is_causal")}
            return self._by_rows(*args, mask, rest)
        return func(*args, **kwargs)

    @torch.compiler.disable  # it would be compiled anew for all lengths of rows
    def _by_rows(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rest: dict[str, Any]) -> Tensor:
        each = zip(self._rows[id(mask)], query.split(1), key.split(1), value.split(1), strict=True)
        return torch.cat([row.attention(q, k, v, rest) for row, q, k, v in each])


class _Row(Protocol):
    def attention(self, query: Tensor, key: Tensor, value: Tensor, rest: dict[str, Any]) -> Tensor:
        """[1, heads, T, D] of one row; 0 at padding."""


def _row(segments: Tensor, mask: Tensor, kind: str, long_row: int) -> _Row:
    length = int((segments != PADDING).sum())
    return _LongRow(segments, mask[0, 0]) if kind == FULL and length >= long_row else _WholeRow(length, mask)


class _WholeRow:
    """A row that is attended to at once, but for its padding."""

    def __init__(self, length: int, mask: Tensor) -> None:
        self._length = length
        self._mask = mask[..., :length, :length]

    def attention(self, query: Tensor, key: Tensor, value: Tensor, rest: dict[str, Any]) -> Tensor:
        length = self._length
        width = query.shape[2]
        found = F.scaled_dot_product_attention(
            query[:, :, :length], key[:, :, :length], value[:, :, :length], attn_mask=self._mask, **rest
        )
        return F.pad(found, (0, 0, 0, width - length)) if width > length else found


class _LongRow:
    """One that is attended to by segments: how many tokens each has, and whom the tokens of each completion see."""

    def __init__(self, segments: Tensor, mask: Tensor) -> None:
        kinds, sizes = torch.unique_consecutive(segments, return_counts=True)
        self._sizes: list[int] = sizes.tolist()
        self._padded = int(kinds[-1]) == PADDING
        prompt = self._sizes[0]
        ends = sizes.cumsum(0).tolist()
        self._masks = [
            torch.cat([mask[start:end, :prompt], mask[start:end, start:end]], 1)
            for start, end in zip(ends, ends[1:], strict=False)
        ]

    def attention(self, query: Tensor, key: Tensor, value: Tensor, rest: dict[str, Any]) -> Tensor:
        queries, keys, values = (tensor.split(self._sizes, 2) for tensor in (query, key, value))
        found = [F.scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True, **rest)]
        for j, mask in enumerate(self._masks, 1):
            if self._padded and j == len(self._masks):
                found.append(torch.zeros_like(queries[j]))
                continue
            seen = torch.cat([keys[0], keys[j]], 2), torch.cat([values[0], values[j]], 2)
            found.append(F.scaled_dot_product_attention(queries[j], *seen, attn_mask=mask, **rest))
        return torch.cat(found, 2)
