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


def token_logps(hidden: Tensor, targets: Tensor, head: nn.Module, config: PretrainedConfig) -> Tensor:
    """log softmax(head(hidden))[targets], in float32.

    The gradient of a frozen head's log-probs is one vector a token, computed along with them: neither logits nor
    a second pass through the head are needed for the backward. A head that is trained is recomputed there.

    Args:
        hidden: [N, H], what the head is given.
        targets: [N] token ids.
        head: the model's output embeddings.
        config: of the model, which may scale or cap the logits.

    Returns:
        [N] float32, in nats.
    """
    logits = _finished(head, config)
    if not (torch.is_grad_enabled() and (hidden.requires_grad or _trained(head))):
        return _joined(hidden, [_logps(logits, h, t) for h, t in _chunks(hidden, targets)])
    if _trained(head):
        parts = [checkpoint(_logps, logits, h, t, use_reentrant=False) for h, t in _chunks(hidden, targets)]
        return _joined(hidden, parts)
    values: Tensor = _FrozenHead.apply(hidden, targets, logits)
    return values


class _FrozenHead(torch.autograd.Function):
    """log p of each target, with d log p / d hidden computed in the forward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, logits: Logits) -> Tensor:
        values, gradients = [], []
        for chunk, target in _chunks(hidden.detach(), targets):
            with torch.enable_grad():
                leaf = chunk.requires_grad_()
                value = _logps(logits, leaf, target)
                # each value depends on its own row alone, so the gradient of the sum holds every row's gradient
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
            values.append(value.detach())
            gradients.append(gradient)
        ctx.save_for_backward(torch.cat(gradients) if gradients else torch.zeros_like(hidden))
        return _joined(hidden, values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return (upstream[0][:, None] * gradients).to(gradients.dtype), None, None


def _logps(logits: Logits, hidden: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(logits(hidden).float(), targets, reduction="none")


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
    return list(zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)) if len(targets) else []


def _joined(hidden: Tensor, parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
