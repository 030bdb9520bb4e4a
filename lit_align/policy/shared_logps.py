"""Log-probs of completions from rows that hold a prompt once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_align.batch import Padded
from lit_align.policy.cpu.attention import cheaper_attention
from lit_align.policy.head import token_logps
from lit_align.policy.internals import attention_name
from lit_align.policy.logps import TokenLogps
from lit_align.policy.outputs import logits_only, output_head
from lit_align.policy.precision import embedding_weight
from lit_align.policy.shared_prompt import FLEX, attention_mask, shared_rows


def shared_logps(
    model: nn.Module, prompt: Padded, completions: Sequence[Padded], with_collisions: bool = False
) -> list[TokenLogps]:
    """Log-probs of several completions of B prompts, one row for each prompt; see `shared_prompt.py`."""
    config: Any = model.config
    rows = shared_rows(prompt, completions)
    if attention_name(config) == FLEX:
        rows = rows.packed()
    mask = attention_mask(rows, config, embedding_weight(model).dtype)
    index = torch.arange(len(rows.ids), device=rows.ids.device)[:, None]
    head = output_head(model)
    with stopped_before(head) as hidden, cheaper_attention(model, rows, mask):
        model(
            input_ids=rows.ids,
            attention_mask=mask,
            position_ids=rows.positions,
            use_cache=False,
            **logits_only(config),
        )
    gathered = torch.cat(
        [
            hidden[0][index.expand_as(columns)[completion.mask], columns[completion.mask]]
            for completion, columns in zip(completions, rows.predicting, strict=True)
        ]
    )
    targets = torch.cat([completion.ids[completion.mask] for completion in completions])
    values, collisions = token_logps(gathered, targets, head, config, with_collisions)
    sizes = [int(completion.mask.sum()) for completion in completions]
    collided = [None] * len(sizes) if collisions is None else collisions.split(sizes)
    return [
        TokenLogps.from_flat(completion.mask, part, collision)
        for completion, part, collision in zip(completions, values.split(sizes), collided, strict=True)
    ]


@contextmanager
def stopped_before(head: nn.Module) -> Iterator[list[Tensor]]:
    """Keeps the input of the LM head, [B, T, H], and gives the head an empty one instead."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        kept.append(inputs[0])
        return (inputs[0][:, :0], *inputs[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
