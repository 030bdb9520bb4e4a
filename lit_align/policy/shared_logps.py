"""Log-probs of completions from a row that holds each prompt once for all of its completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_align.batch import Padded, lay_out_padded
from lit_align.policy.attention import Pass, shared_pass, use_shared_attention
from lit_align.policy.head import token_logps
from lit_align.policy.logps import TokenLogps
from lit_align.policy.outputs import as_input, output_head, outputs_of
from lit_align.shared_rows import SharedRows


def shared_logps(
    model: nn.Module,
    prompt: Padded,
    completions: Sequence[Padded],
    with_collisions: bool = False,
    rows: SharedRows | None = None,
    with_router_loss: bool = False,
) -> list[TokenLogps]:
    """Log-probs of several completions of B prompts, all in one row; see `lit_align/shared_rows.py`.

    Args:
        model: as in :func:`~lit_align.policy.logps.sequence_logps`.
        prompt: [B, P], each with at least one token.
        completions: any number of [B, C_j].
        with_collisions: also fills `TokenLogps.collisions`.
        rows: their layout, on the model's device; None lays them out.
        with_router_loss: adds the pass's router loss, see :meth:`~lit_align.policy.logps.TokenLogps.of_pass`; each
            token of the row counts once in it.
    """
    if rows is None:
        rows = lay_out_padded(prompt, completions).to(prompt.ids.device)
    ids = torch.cat([padded.ids.flatten() for padded in (prompt, *completions)])[rows.source]
    config: Any = model.config
    hidden, record = hidden_states(model, ids, rows, with_router_loss)
    values, collisions = token_logps(
        hidden[rows.predicting], ids[rows.columns], output_head(model), config, with_collisions
    )
    counts = list(rows.counts)
    collided = [None] * len(counts) if collisions is None else collisions.split(counts)
    logps = [
        TokenLogps.from_flat(completion.mask, slots, part, collision)
        for completion, slots, part, collision in zip(
            completions, rows.slots.split(counts), values.split(counts), collided, strict=True
        )
    ]
    return [*logps, TokenLogps.of_pass(record.router_loss, prompt)] if with_router_loss else logps


def hidden_states(
    model: nn.Module, ids: Tensor, rows: SharedRows, with_router_loss: bool = False
) -> tuple[Tensor, Pass]:
    """The states that the head gets, [T, H], and what attention was asked for.

    Args:
        model: as in :func:`shared_logps`.
        ids: [T] the tokens of the row.
        rows: their layout.
        with_router_loss: also computes `Pass.router_loss`.
    """
    use_shared_attention(model)
    config: Any = model.config
    with shared_pass() as record, stopped_before(output_head(model)) as kept:
        output = model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids[None]),  # given none, the library would look for packed rows itself
            position_ids=rows.positions,
            layout=rows.layout,
            use_cache=False,
            **outputs_of(config, with_router_loss),
        )
    record.router_loss = getattr(output, "aux_loss", None)
    return kept[0][0], record


@contextmanager
def stopped_before(head: nn.Module) -> Iterator[list[Tensor]]:
    """Keeps the input of the LM head, [B, T, H], and gives the head an empty one instead."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        kept.append(inputs[0])
        return (as_input(head, inputs[0][:, :0]), *inputs[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
