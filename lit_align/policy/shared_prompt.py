"""Rows that hold a prompt once, with all its completions behind it.

    [ prompt | completion 1 | completion 2 | ... | padding ]

Positions restart after the prompt for each completion, and the attention mask keeps completions from seeing each
other, so every token sees exactly what it would see in a row of its own: the log-probs are the same, to rounding,
for the cost of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PretrainedConfig

from lit_align.batch import Padded
from lit_align.policy.internals import attention_name

PADDING = -1
FULL = "full_attention"
SLIDING = "sliding_attention"
DENSE_MASKS = ("sdpa", "eager")
"""The attention implementations that take a dense mask."""
FLEX = "flex_attention"
"""The one that takes a block mask and skips what it leaves out."""
Mask = Tensor | BlockMask


@dataclass(frozen=True)
class SharedRows:
    """B rows of T tokens.

    Args:
        ids: [B, T] token ids.
        positions: [B, T] position of each token in its own sequence.
        segments: [B, T] 0 in a prompt, j in completion j (from 1), `PADDING` behind them.
        predicting: for each completion [B, C_j] the column whose hidden state predicts each of its tokens.
        owners: [1, T] index of the prompt that a token belongs to, if all are packed into one row; `predicting`
            keeps its shape. None for rows that are not packed.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    predicting: list[Tensor]
    owners: Tensor | None = None

    def packed(self) -> SharedRows:
        """The same tokens in one row, without padding. Only for attention that skips masked blocks."""
        kept = self.segments != PADDING
        columns = kept.flatten().cumsum(0).view_as(kept) - 1
        owners = torch.arange(len(kept), device=kept.device)[:, None].expand_as(kept)
        ids, positions, segments, owners = (
            tensor[kept][None] for tensor in (self.ids, self.positions, self.segments, owners)
        )
        predicting = [columns.gather(1, predictor.clamp(max=columns.shape[1] - 1)) for predictor in self.predicting]
        return SharedRows(ids, positions, segments, predicting, owners)

    def sees(self, window: int | None = None) -> Callable[..., Tensor]:
        """A function (b, head, q, k) -> bool: whether, in row b, the token in column q sees that in column k.

        Args:
            window: the size of a layer's sliding window, which counts positions, not columns; None without one.
        """
        segments = self.segments
        positions = self.positions
        owners = self.owners

        def seen(b: Tensor, _: object, q: Tensor, k: Tensor) -> Tensor:
            prompt_or_own = (segments[b, k] == 0) | (segments[b, k] == segments[b, q])
            allowed = (q >= k) & (segments[b, k] != PADDING) & prompt_or_own
            if owners is not None:
                allowed = allowed & (owners[b, q] == owners[b, k])
            allowed = allowed | (q == k)  # padding sees itself: no empty softmax
            return allowed if window is None else allowed & (positions[b, q] - positions[b, k] < window)

        return seen


def shared_rows(prompt: Padded, completions: Sequence[Padded]) -> SharedRows:
    """Lays out the completions of each prompt behind it.

    Args:
        prompt: [B, P], each with at least one token.
        completions: any number of [B, C_j].
    """
    prompt_lengths = prompt.lengths[:, None]
    lengths = torch.stack([completion.lengths for completion in completions], dim=1)  # [B, K]
    ends = prompt_lengths + lengths.cumsum(1)
    starts = ends - lengths
    width = int(ends[:, -1].max())
    columns = torch.arange(width, device=lengths.device).expand(len(lengths), width)

    segments = torch.where(columns < prompt_lengths, 0, PADDING)
    positions = columns.clone()
    ids = torch.zeros_like(columns)
    ids[segments == 0] = prompt.ids[prompt.mask]
    predicting = []
    for j, completion in enumerate(completions):
        start = starts[:, j, None]
        end = ends[:, j, None]
        inside = (columns >= start) & (columns < end)
        segments = segments.masked_fill(inside, j + 1)
        positions = torch.where(inside, columns - start + prompt_lengths, positions)
        ids[inside] = completion.ids[completion.mask]
        # the last prompt token predicts a completion's first token; each other token, the one behind it
        offsets = torch.arange(completion.ids.shape[1], device=start.device)
        predicting.append(torch.where(offsets == 0, prompt_lengths - 1, start + offsets - 1))
    return SharedRows(ids, positions, segments, predicting)


def attention_mask(rows: SharedRows, config: PretrainedConfig, dtype: torch.dtype) -> Mask | dict[str, Mask]:
    """The mask that a model of transformers takes in place of a padding mask: [B, 1, T, T], or a block mask.

    Models that mix layers with and without a sliding window get one mask for each kind.

    Args:
        rows: the layout.
        config: the model's configuration; :func:`takes_mask` tells whether its attention takes such a mask.
        dtype: dtype of the model's hidden states, for masks that are added to scores.
    """
    kinds = layer_kinds(config)
    masks = {kind: _mask(rows, _window(config) if kind == SLIDING else None, config, dtype) for kind in kinds}
    return masks if len(masks) > 1 else masks[next(iter(masks))]


def takes_mask(config: PretrainedConfig) -> bool:
    """Whether the model's attention takes a mask of its own for each pair of tokens."""
    return unfit_attention(config) is None


def unfit_attention(config: PretrainedConfig) -> str | None:
    """The reason why the model's attention takes no mask for each pair of tokens; None if it does."""
    attention = attention_name(config)
    if attention not in (*DENSE_MASKS, FLEX):
        return f'its attention {attention!r} takes no such mask (attn_implementation: "sdpa" or "eager" does)'
    others = layer_kinds(config) - {FULL, SLIDING}
    return f"it has layers of the kind {', '.join(sorted(others))}" if others else None


def _window(config: PretrainedConfig) -> int | None:
    if getattr(config, "use_sliding_window", True) is False:
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def layer_kinds(config: PretrainedConfig) -> set[str]:
    """The kinds of attention among the layers; models without a list of kinds have one kind only."""
    kinds = set(getattr(config, "layer_types", None) or ())
    return kinds or {FULL if _window(config) is None else SLIDING}


def _mask(rows: SharedRows, window: int | None, config: PretrainedConfig, dtype: torch.dtype) -> Mask:
    count, width = rows.ids.shape
    device = rows.ids.device
    if attention_name(config) == FLEX:
        return create_block_mask(rows.sees(window), count, None, width, width, device=str(device))
    columns = torch.arange(width, device=device)
    batch = torch.arange(count, device=device)[:, None, None, None]
    mask = rows.sees(window)(batch, None, columns[:, None], columns)
    if attention_name(config) == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
