"""Log-probs from hidden states: the LM head in chunks, in float32, without keeping any logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

CHUNK = 256
"""Tokens whose logits are in memory at the same time."""

Logits = Callable[[Tensor], Tensor]


def token_logps(
    hidden: Tensor, targets: Tensor, head: nn.Module, config: PretrainedConfig, with_collisions: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log softmax(head(hidden))[targets], in float32.

    The gradient of a frozen head's log-probs is one vector a token, computed along with them: neither logits nor
    a second pass through the head are needed for the backward. A head that is trained is recomputed there.

    Args:
        hidden: [N, H], what the head is given.
        targets: [N] token ids.
        head: the model's output embeddings.
        config: of the model, which may scale or cap the logits.
        with_collisions: also compute :func:`collisions`.

    Returns:
        The log-probs, [N] float32 in nats, and on demand the collisions, [N], without gradients.
    """
    logits = _finished(head, config)
    if not len(targets):
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    if torch.is_grad_enabled() and hidden.requires_grad and not _trained(head):
        values, collided = _FrozenHead.apply(hidden, targets, logits, with_collisions)
    else:
        recompute = torch.is_grad_enabled() and _trained(head)
        parts = [
            checkpoint(_logps, logits, h, t, with_collisions, use_reentrant=False)
            if recompute
            else _logps(logits, h, t, with_collisions)
            for h, t in _chunks(hidden, targets)
        ]
        values, collided = (torch.cat(some) for some in zip(*parts, strict=True))
    return values, collided if with_collisions else None


def collisions(logits: Tensor) -> Tensor:
    """log sum_v p(v)^2 of each row of logits [N, V]: how likely two draws agree, [N] float32, without gradients."""
    logits = logits.detach().float()
    return (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)


class _FrozenHead(torch.autograd.Function):
    """log p of each target, with d log p / d hidden computed in the forward, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, logits: Logits, with_collisions: bool
    ) -> tuple[Tensor, Tensor]:
        values, gradients, collided = [], [], []
        for chunk, target in _chunks(hidden.detach(), targets):
            with torch.enable_grad():
                leaf = chunk.requires_grad_()
                value, collision = _logps(logits, leaf, target, with_collisions)
                # each value depends on its own row alone, so the gradient of the sum holds every row's gradient
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
            values.append(value.detach())
            gradients.append(gradient)
            collided.append(collision)
        ctx.save_for_backward(torch.cat(gradients))
        together = torch.cat(collided)
        ctx.mark_non_differentiable(together)
        return torch.cat(values), together

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (upstream[0][:, None] * gradients).to(gradients.dtype), None, None, None


def _logps(logits: Logits, hidden: Tensor, targets: Tensor, with_collisions: bool) -> tuple[Tensor, Tensor]:
    """[N] log-probs and [N] collisions, or none of them: [0]."""
    found = logits(hidden).float()
    return -F.cross_entropy(found, targets, reduction="none"), collisions(found if with_collisions else found[:0])


def _finished(head: nn.Module, config: PretrainedConfig) -> Logits:
    """The head with what models of transformers do to its output, by the names their configurations use."""
    divisor = getattr(config, "logits_scaling", None)  # Granite
    factor = getattr(config, "logit_scale", None)  # Cohere
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2

    def finished(hidden: Tensor) -> Tensor:
        logits: Tensor = head(hidden)
        if divisor is not None:
            logits = logits / divisor
        if factor is not None:
            logits = logits * factor
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return finished


def _trained(head: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in head.parameters())


def _chunks(hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True))
