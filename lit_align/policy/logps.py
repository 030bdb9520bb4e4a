"""Log-probabilities of completions under a causal language model, by its plain forward pass.

One row per completion, its prompt in front, padding on the right: the form that every model takes. `forward.py`, which
computes each prompt once, is checked against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.batch import Padded
from lit_align.policy.head import collisions
from lit_align.policy.outputs import output_head, outputs_of
from lit_align.shared_rows import demand_prompts

NEGLIGIBLE = 1e-30
"""Smaller gradients of a log-prob count as 0. float32 has eight more decimal places before numbers get denormal."""


@dataclass(frozen=True)
class TokenLogps:
    """Log-probs of the tokens of B completions.

    Args:
        logps: [B, C] float32 in nats, 0 at padding.
        mask: [B, C] bool, True where a token is real.
        collisions: [B, C] log sum_v pi(v)^2 of the distribution that each token is drawn from, detached and 0 at
            padding; None unless it was computed.
    """

    logps: Tensor
    mask: Tensor
    collisions: Tensor | None = None

    @classmethod
    def from_flat(cls, mask: Tensor, slots: Tensor, values: Tensor, collisions: Tensor | None) -> TokenLogps:
        """Spreads the values of the real tokens over [B, C].

        Args:
            mask: [B, C] bool, True where a token is real.
            slots: [N] the places of the real tokens in the flattened mask.
            values: [N] their log-probs.
            collisions: [N] their collisions, or None.
        """

        def spread(flat: Tensor) -> Tensor:
            return flat.new_zeros(mask.numel()).scatter(0, slots, flat).view_as(mask)

        if values.requires_grad:
            values.register_hook(_without_traces)
        return cls(spread(values), mask, None if collisions is None else spread(collisions))

    @classmethod
    def of_pass(cls, value: Tensor | None, prompt: Padded) -> TokenLogps:
        """A number of a whole pass, for each of its B prompts: [B, 1]. Parts of a batch then join as log-probs do.

        Raises:
            ValueError: the model did not compute it.
        """
        if value is None:
            raise ValueError("the model's config says output_router_logits, but the model gives no router loss")
        mask = torch.ones_like(prompt.mask[:, :1])
        return cls(value.float().expand(len(mask))[:, None], mask)

    def sum(self) -> Tensor:
        """[B] log-prob of each completion."""
        return self.logps.sum(-1)

    @property
    def lengths(self) -> Tensor:
        """[B] int64, tokens of each completion."""
        return self.mask.sum(-1)

    def rows(self, start: int, stop: int) -> TokenLogps:
        """The completions from `start` to `stop`."""
        collisions = None if self.collisions is None else self.collisions[start:stop]
        return TokenLogps(self.logps[start:stop], self.mask[start:stop], collisions)


def _without_traces(gradient: Tensor) -> Tensor:
    """Sets gradients to 0 that are too small to move any weight, such as those of a pair far out on a sigmoid.

    On a CPU a backward pass with denormal numbers takes up to a hundred times as long.
    """
    return gradient.masked_fill(gradient.abs() < NEGLIGIBLE, 0)


def sequence_logps(model: nn.Module, prompt: Padded, completion: Padded, with_collisions: bool = False) -> TokenLogps:
    """log pi(token | prompt, earlier tokens) of every completion token, in float32.

    The LM head runs only on positions that predict a completion token. Scaling and soft-capping of logits after the
    head apply as in the model's plain forward pass.

    Args:
        model: a causal language model of transformers, or one wrapped by peft.
        prompt: [B, P], each with at least one token.
        completion: [B, C], the completions of the B prompts.
        with_collisions: also fills `TokenLogps.collisions`.

    Raises:
        ValueError: a prompt is empty, so that nothing would predict the first token of its completion.
    """
    return _sequence_logps(model, prompt, completion, with_collisions, with_router_loss=False)[0]


def _sequence_logps(
    model: nn.Module, prompt: Padded, completion: Padded, with_collisions: bool, with_router_loss: bool
) -> tuple[TokenLogps, Tensor | None]:
    """The log-probs, and the router loss of the pass if it was asked for."""
    demand_prompts(prompt.sizes)
    rows = _rows(prompt, completion)
    logits, router_loss = _logits_at(model, rows, with_router_loss)
    values = -F.cross_entropy(logits.float(), rows.targets, reduction="none")
    slots = completion.mask.flatten().nonzero()[:, 0]
    collided = collisions(logits) if with_collisions else None
    return TokenLogps.from_flat(completion.mask, slots, values, collided), router_loss


def plain_logps(
    model: nn.Module,
    prompt: Padded,
    completions: Sequence[Padded],
    with_collisions: bool = False,
    with_router_loss: bool = False,
) -> list[TokenLogps]:
    """Log-probs of several completions of B prompts, each in a row of its own, from one forward pass.

    Args:
        model: as in :func:`sequence_logps`.
        prompt: [B, P].
        completions: any number of [B, C_j].
        with_collisions: also fill `TokenLogps.collisions`.
        with_router_loss: adds the pass's router loss, see :meth:`TokenLogps.of_pass`; a prompt counts in it as often
            as it is computed.
    """
    size = len(prompt.ids)
    prompts = _repeat(prompt, len(completions))
    together, router_loss = _sequence_logps(model, prompts, _stack(completions), with_collisions, with_router_loss)
    logps = [together.rows(i * size, (i + 1) * size) for i in range(len(completions))]
    return [*logps, TokenLogps.of_pass(router_loss, prompt)] if with_router_loss else logps


@dataclass(frozen=True)
class PlainRows:
    """B rows of a prompt with one completion, padded on the right.

    Args:
        ids: [B, T].
        mask: [B, T] bool, True where a token is real.
        rows: [N] the row of each completion token.
        columns: [N] the column of the token before it, which predicts it.
        targets: [N] the completion tokens.
    """

    ids: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor


def plain_rows(prompt: Padded, completions: Sequence[Padded]) -> PlainRows:
    """The rows of :func:`plain_logps`."""
    return _rows(_repeat(prompt, len(completions)), _stack(completions))


def _repeat(prompt: Padded, count: int) -> Padded:
    return Padded(prompt.ids.repeat(count, 1), prompt.mask.repeat(count, 1), prompt.sizes * count)


def _rows(prompt: Padded, completion: Padded) -> PlainRows:
    ids, mask = _join(prompt, completion)
    # token j of a completion is predicted at the position before it: prompt_length - 1 + j
    predicting = prompt.lengths[:, None] - 1 + torch.arange(completion.ids.shape[1], device=ids.device)
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(predicting)
    real = completion.mask
    return PlainRows(ids, mask, rows[real], predicting[real], completion.ids[real])


def _stack(parts: Sequence[Padded]) -> Padded:
    """The rows of all parts, padded to the longest."""
    width = max(part.ids.shape[1] for part in parts)
    ids = torch.cat([F.pad(part.ids, (0, width - part.ids.shape[1])) for part in parts])
    mask = torch.cat([F.pad(part.mask, (0, width - part.mask.shape[1])) for part in parts])
    return Padded(ids, mask)


def _join(prompt: Padded, completion: Padded) -> tuple[Tensor, Tensor]:
    """Prompt and completion in one row, padding on the right: ids and mask, each [B, T]."""
    lengths = prompt.lengths + completion.lengths
    columns = torch.arange(int(lengths.max()), device=lengths.device)
    mask = columns < lengths[:, None]
    in_prompt = columns < prompt.lengths[:, None]
    ids = torch.zeros_like(mask, dtype=torch.long)
    ids[in_prompt] = prompt.ids[prompt.mask]
    ids[mask & ~in_prompt] = completion.ids[completion.mask]
    return ids, mask


def _logits_at(model: nn.Module, rows: PlainRows, with_router_loss: bool) -> tuple[Tensor, Tensor | None]:
    """The model's logits at the N positions that predict, [N, vocabulary], and the router loss if it is asked for."""
    head = output_head(model)
    with _gather_before(head, rows.rows, rows.columns) as gathered:
        options = outputs_of(model.config, with_router_loss)
        output = model(input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False, **options)
    logits: Tensor = output.logits
    return logits[0] if gathered else logits[rows.rows, rows.columns], getattr(output, "aux_loss", None)


@contextmanager
def _gather_before(head: nn.Module | None, rows: Tensor, columns: Tensor) -> Iterator[list[bool]]:
    """Gives the LM head only the hidden states at (row, column), as one row [1, N, H].

    Yields a list that stays empty if the head did not run like this: a model that does not call its head as a
    module gives logits for every position.
    """
    gathered: list[bool] = []

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gathered.append(True)
        return (inputs[0][rows, columns][None], *inputs[1:])

    handle = head.register_forward_pre_hook(gather) if head is not None else None
    try:
        yield gathered
    finally:
        if handle is not None:
            handle.remove()
