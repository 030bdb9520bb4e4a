"""A batch of pairs as the rows of a sequence classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_align.batch import Padded, PairBatch


def classifier_rows(batch: PairBatch, pad_id: int, segments: bool) -> dict[str, Tensor]:
    """The 2B rows of B pairs: prompt and chosen answer of each, then prompt and rejected answer of each.

    Args:
        batch: B pairs of :class:`~lit_align.reward.encode.RewardEncoder`.
        pad_id: fills up on the right.
        segments: whether the model is told prompt and answer apart by `token_type_ids`.

    Returns:
        `input_ids`, `attention_mask` and, with `segments`, `token_type_ids`, each [2B, T] int64.
    """
    prompts = Padded(torch.cat([batch.prompt.ids] * 2), torch.cat([batch.prompt.mask] * 2))
    answers = _stack(batch.chosen, batch.rejected, pad_id)
    mask = torch.cat([prompts.mask, answers.mask], 1)
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
    mask = mask.gather(1, order)
    ids = torch.cat([prompts.ids, answers.ids], 1).gather(1, order)
    rows = {"input_ids": ids.masked_fill(~mask, pad_id), "attention_mask": mask.long()}
    if segments:
        rows["token_type_ids"] = ((order >= prompts.ids.shape[1]) & mask).long()
    return rows


def _stack(first: Padded, second: Padded, pad_id: int) -> Padded:
    width = max(first.ids.shape[1], second.ids.shape[1])
    pad = torch.nn.functional.pad
    ids = [pad(side.ids, (0, width - side.ids.shape[1]), value=pad_id) for side in (first, second)]
    masks = [pad(side.mask, (0, width - side.mask.shape[1]), value=False) for side in (first, second)]
    return Padded(torch.cat(ids), torch.cat(masks))
