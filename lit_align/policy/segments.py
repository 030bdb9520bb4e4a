"""Attention of rows that share a prompt, computed only where tokens see each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lit_align.policy.shared_prompt import PADDING, SharedRows


class SegmentAttention(TorchFunctionMode):
    """Inside it, dense attention under `mask` is replaced by attention segment by segment.

    Most of a shared row's mask is empty: the prompt sees no completion, completions do not see each other. Here the
    prompt attends to itself and each completion to the prompt and itself. Attention under any other mask, and the
    same mask outside of the `with` (as when checkpointed layers run again), takes its usual way, to the same result.

    Args:
        rows: the layout.
        mask: [B, 1, T, T] bool, the very tensor that the model is given.
    """

    def __init__(self, rows: SharedRows, mask: Tensor) -> None:
        super().__init__()
        self._mask = mask
        self._rows = [_Row(segments, mask[b, 0]) for b, segments in enumerate(rows.segments)]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is self._mask and len(args) == 3:
            rest = {key: value for key, value in kwargs.items() if key not in ("attn_mask", "is_causal")}
            return self._by_segments(*args, rest)
        return func(*args, **kwargs)

    @torch.compiler.disable  # it would be compiled anew for all lengths of segments
    def _by_segments(self, query: Tensor, key: Tensor, value: Tensor, rest: dict[str, Any]) -> Tensor:
        rows = zip(self._rows, query.split(1), key.split(1), value.split(1), strict=True)
        return torch.cat([row.attention(q, k, v, rest) for row, q, k, v in rows])


class _Row:
    """One row: how many tokens each of its segments has, and whom the tokens of each completion see."""

    def __init__(self, segments: Tensor, mask: Tensor) -> None:
        kinds, sizes = torch.unique_consecutive(segments, return_counts=True)
        self._sizes: list[int] = sizes.tolist()
        self._padded = int(kinds[-1]) == PADDING
        prompt, ends = self._sizes[0], sizes.cumsum(0).tolist()
        self._masks = [
            torch.cat([mask[start:end, :prompt], mask[start:end, start:end]], 1)
            for start, end in zip(ends, ends[1:], strict=False)
        ]

    def attention(self, query: Tensor, key: Tensor, value: Tensor, rest: dict[str, Any]) -> Tensor:
        """[1, heads, T, D] of one row; 0 at padding."""
        queries, keys, values = (tensor.split(self._sizes, 2) for tensor in (query, key, value))
        found = [F.scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True, **rest)]
        for j, mask in enumerate(self._masks, 1):
            if self._padded and j == len(self._masks):
                found.append(torch.zeros_like(queries[j]))
                continue
            seen = torch.cat([keys[0], keys[j]], 2), torch.cat([values[0], values[j]], 2)
            found.append(F.scaled_dot_product_attention(queries[j], *seen, attn_mask=mask, **rest))
        return torch.cat(found, 2)
