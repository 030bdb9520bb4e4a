"""Rows that hold a prompt once, with all its completions behind it.

    [ prompt | completion 1 | completion 2 | ... | padding ]

Positions restart after the prompt for each completion, and the attention mask keeps completions from seeing each
other, so every token sees exactly what it would see in a row of its own: the log-probs are the same, to rounding,
for the cost of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lit_align.batch import Padded

PADDING = -1
FULL, SLIDING = "full_attention", "sliding_attention"
DENSE_MASKS = ("sdpa", "eager")
"""The attention implementations that take a dense mask."""


@dataclass(frozen=True)
class SharedRows:
    """B rows of T tokens.

    Args:
        ids: [B, T] token ids.
        positions: [B, T] position of each token in its own sequence.
        segments: [B, T] 0 in the prompt, j in completion j (from 1), `PADDING` behind them.
        predicting: for each completion [B, C_j] the column whose hidden state predicts each of its tokens.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    predicting: list[Tensor]


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
        start, end = starts[:, j, None], ends[:, j, None]
        inside = (columns >= start) & (columns < end)
        segments = segments.masked_fill(inside, j + 1)
        positions = torch.where(inside, columns - start + prompt_lengths, positions)
        ids[inside] = completion.ids[completion.mask]
        # the last prompt token predicts a completion's first token; each other token, the one behind it
        offsets = torch.arange(completion.ids.shape[1], device=start.device)
        predicting.append(torch.where(offsets == 0, prompt_lengths - 1, start + offsets - 1))
    return SharedRows(ids, positions, segments, predicting)


def attention_mask(rows: SharedRows, config: PretrainedConfig, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The mask a model of transformers takes in place of a padding mask, [B, 1, T, T].

    A sliding window counts positions, not columns. Models that mix both kinds of layers get one mask for each kind.

    Args:
        rows: the layout.
        config: the model's configuration; :func:`takes_mask` says whether it is one that works.
        dtype: of the model's hidden states, for masks that are added to scores.
    """
    positions, segments = rows.positions, rows.segments
    width = positions.shape[1]
    columns = torch.arange(width, device=positions.device)
    seen = (columns[:, None] >= columns) & (segments[:, None, :] != PADDING)
    seen = seen & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None]))
    seen = seen | torch.eye(width, dtype=torch.bool, device=positions.device)  # padding sees itself: no empty softmax
    window = _window(config)
    masks = {FULL: seen}
    if window is not None:
        masks[SLIDING] = seen & (positions[:, :, None] - positions[:, None, :] < window)
    ready = {kind: _ready(mask, config, dtype) for kind, mask in masks.items()}
    kinds = _layer_kinds(config)
    return {kind: ready[kind] for kind in kinds} if len(kinds) > 1 else ready[next(iter(kinds))]


def takes_mask(config: PretrainedConfig) -> bool:
    """Whether the model's attention can be told by a dense mask who sees whom."""
    return config._attn_implementation in DENSE_MASKS and _layer_kinds(config) <= {FULL, SLIDING}


def _window(config: PretrainedConfig) -> int | None:
    if getattr(config, "use_sliding_window", True) is False:
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def _layer_kinds(config: PretrainedConfig) -> set[str]:
    """The kinds of attention among the layers; models without a list of kinds have one kind only."""
    kinds = set(getattr(config, "layer_types", None) or ())
    return kinds or {FULL if _window(config) is None else SLIDING}


def _ready(mask: Tensor, config: PretrainedConfig, dtype: torch.dtype) -> Tensor:
    if config._attn_implementation == "sdpa":
        return mask[:, None]
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)[:, None]
