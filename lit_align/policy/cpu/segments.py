"""Attention row by row for rows that share a prompt; in long rows only between tokens that see each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lit_align.policy.shared_prompt import FULL, PADDING, SharedRows


class RowAttention(TorchFunctionMode):
    """A mode in which dense attention under one of the masks is replaced by attention row by row.

    The result for a row then does not depend on the rows beside it or on their width. Most of a long row's mask is
    empty: the prompt sees no completion, and completions do not see each other. In such rows the prompt attends to
    itself, and each completion to the prompt and itself. Attention under any other mask stays as it is.

    Args:
        rows: the layout.
        masks: [B, 1, T, T] bool by kind of layer: the very tensors that the model gets, since they are compared by
            identity.
        long_row: rows of at least this many tokens are attended to by segments, in layers without a window.
    """

    def __init__(self, rows: SharedRows, masks: Mapping[str, Tensor], long_row: int) -> None:
        super().__init__()
        self._masks = list(masks.values())
        self._rows: dict[int, list[_Row]] = {}
        for kind, mask in masks.items():
            mask_of_rows = zip(rows.segments, mask.split(1), strict=True)
            self._rows[id(mask)] = [
                _make_row(segments, row_mask, kind, long_row) for segments, row_mask in mask_of_rows
            ]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        mask = kwargs.get("attn_mask")
        if func is F.scaled_dot_product_attention and len(args) == 3 and any(mask is own for own in self._masks):
            options = {key: value for key, value in kwargs.items() if key not in ("attn_mask", "is_causal")}
            return self._attend_by_rows(*args, mask, options)
        return func(*args, **kwargs)

    @torch.compiler.disable  # it would be compiled anew for each length of rows
    def _attend_by_rows(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: dict[str, Any]
    ) -> Tensor:
        rows = zip(self._rows[id(mask)], query.split(1), key.split(1), value.split(1), strict=True)
        return torch.cat([row.attend(q, k, v, options) for row, q, k, v in rows])


# A row keeps only what its layout fixes (lengths and masks), which all layers of a kind share; queries, keys and
# values come from each layer. Padding is cut off before and filled with 0 after: no real token sees it.
class _Row(Protocol):
    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        """Attention [1, heads, T, D] of one row; 0 at padding."""


def _make_row(segments: Tensor, mask: Tensor, kind: str, long_row: int) -> _Row:
    length = int((segments != PADDING).sum())
    return _LongRow(segments, mask[0, 0]) if kind == FULL and length >= long_row else _WholeRow(length, mask)


class _WholeRow:
    """A row that is attended to in one piece, without its padding."""

    def __init__(self, length: int, mask: Tensor) -> None:
        self._length = length
        self._mask = mask[..., :length, :length]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        """See :meth:`_Row.attend`."""
        length = self._length
        width = query.shape[2]
        output = F.scaled_dot_product_attention(
            query[:, :, :length], key[:, :, :length], value[:, :, :length], attn_mask=self._mask, **options
        )
        return F.pad(output, (0, 0, 0, width - length)) if width > length else output


class _LongRow:
    """A row that is attended to by segments: first the prompt, then each completion over the prompt and itself."""

    def __init__(self, segments: Tensor, mask: Tensor) -> None:
        kinds, sizes = torch.unique_consecutive(segments, return_counts=True)
        self._sizes: list[int] = sizes.tolist()
        self._padded = int(kinds[-1]) == PADDING
        prompt = self._sizes[0]
        ends = sizes.cumsum(0).tolist()
        self._masks = [
            torch.cat([mask[start:end, :prompt], mask[start:end, start:end]], 1) for start, end in pairwise(ends)
        ]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        """See :meth:`_Row.attend`."""
        queries, keys, values = (tensor.split(self._sizes, 2) for tensor in (query, key, value))
        outputs = [F.scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True, **options)]
        for j, mask in enumerate(self._masks, 1):
            if self._padded and j == len(self._masks):
                outputs.append(torch.zeros_like(queries[j]))
                continue
            seen = torch.cat([keys[0], keys[j]], 2), torch.cat([values[0], values[j]], 2)
            outputs.append(F.scaled_dot_product_attention(queries[j], *seen, attn_mask=mask, **options))
        return torch.cat(outputs, 2)
