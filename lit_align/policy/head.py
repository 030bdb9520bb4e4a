"""Log-probs from hidden states: runs the LM head in pieces, in float32, without keeping any logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""What configs call the factor of the logits: Cohere, Falcon-H1, Muse."""
MULTIPLIED = {"hyperclovax"}
"""Model types whose logits are multiplied by `logits_scaling`; those of Granite are divided by it."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configs call the soft cap of the logits: Gemma, RecurrentGemma, xLSTM."""
CHUNK = 256
"""Tokens whose logits are in memory at the same time, if the head is trained or its weight is not a plain one."""
BLOCKS = {"cpu": (2048, 2048), "cuda": (1024, 8192)}
"""Tokens and vocabulary entries of a block of a frozen head: large enough for the threads, small enough for memory."""


def token_logps(
    hidden: Tensor, targets: Tensor, head: nn.Module, config: PretrainedConfig, with_collisions: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log softmax(head(hidden))[targets], in float32.

    A frozen head is run block by block over tokens and vocabulary. The gradient of its log-probs, one vector a
    token, is computed along with them: the backward needs neither logits nor a second pass. A head that is trained
    is run in chunks of tokens and recomputed in the backward.

    Args:
        hidden: [N, H], the input of the head.
        targets: [N] token ids.
        head: the model's output embeddings.
        config: the model's configuration, which may scale or cap the logits.
        with_collisions: also computes :func:`collisions`.

    Returns:
        The log-probs, [N] float32 in nats, and on demand the collisions, [N], without gradients.
    """
    if not len(targets):
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    transform = LogitTransform.of(config)
    if has_whole_weight(head) and not _trained(head):
        values, collided = _FrozenHead.apply(hidden, targets, head, transform, with_collisions)
    else:
        parts = [
            checkpoint(_logps, head, transform, h, t, with_collisions, use_reentrant=False)
            for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
        ]
        values, collided = (torch.cat(chunks) for chunks in zip(*parts, strict=True))
    return values, collided if with_collisions else None


def collisions(logits: Tensor) -> Tensor:
    """log sum_v p(v)^2 of each row of logits [N, V], the log-probability that two draws agree.

    Returns:
        [N] float32, without gradients.
    """
    logits = logits.detach().float()
    return (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)


@dataclass(frozen=True)
class LogitTransform:
    """The scaling and capping that models of transformers apply to the head's output."""

    factor: float
    cap: float | None

    @classmethod
    def of(cls, config: PretrainedConfig) -> LogitTransform:
        """Reads it from the config of the language part; `shared_check.py` finds a model that it does not fit."""
        text: Any = config.get_text_config()
        found = (getattr(text, name, None) for name in FACTORS)
        factor = math.prod(value for value in found if value is not None)
        scaling = getattr(text, "logits_scaling", None)
        if scaling is not None:
            factor = factor * scaling if text.model_type in MULTIPLIED else factor / scaling
        caps = (getattr(text, name, None) for name in CAPS)
        return cls(float(factor), next((cap for cap in caps if cap is not None), None))

    def __call__(self, output: Tensor) -> Tensor:
        """The logits, in float32."""
        logits = output if self.factor == 1 else output * self.factor
        return (logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)).float()

    def slopes(self, logits: Tensor) -> Tensor | None:
        """The derivative of the logits by the scaled output of the head; None if it is 1 everywhere."""
        return None if self.cap is None else 1 - (logits / self.cap).square()


class _FrozenHead(torch.autograd.Function):
    """Computes log p of each target and its gradient by the hidden state, in one pass over the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Linear, transform: LogitTransform, with_collisions: bool
    ) -> tuple[Tensor, Tensor]:
        rows, width = BLOCKS.get(hidden.device.type, BLOCKS["cuda"])
        parts = []
        for block, own in zip(hidden.split(rows), targets.split(rows), strict=True):
            sums = OnlineSoftmax(block, own[:, None], ctx.needs_input_grad[0], with_collisions)
            for start in range(0, head.out_features, width):
                sums.add(head, transform, start, start + width)
            parts.append(sums.result(head, transform))
        values, gradients, collided = (torch.cat(block) for block in zip(*parts, strict=True))
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(collided)
        return values, collided

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (upstream[0][:, None] * gradients).to(gradients.dtype), None, None, None, None


class OnlineSoftmax:
    """The sums over the vocabulary behind log p(t) and its gradient, built up block by block (arXiv 1805.02867).

    With logits l_v = f(W_v h) the gradient of log p(t) by h is f'(l_t) W_t - sum_v p(v) f'(l_v) W_v; the second term
    is a mean under the softmax. All sums are of exp(l_v - top), where top is the largest logit so far.

    Attributes:
        top: [N, 1] the largest logit so far.
        own: [N, 1] the target's logit.
        total: [N, 1] sum of exp(l_v - top).
        squares: [N, 1] sum of exp(l_v - top)^2.
        mean: [N, H] sum of exp(l_v - top) f'(l_v) W_v; :meth:`result` divides it by `total`.
    """

    def __init__(self, hidden: Tensor, targets: Tensor, with_gradient: bool, with_collisions: bool) -> None:
        """`hidden` [N, H], `targets` [N, 1]."""
        zeros = torch.zeros(targets.shape, device=hidden.device)
        self.hidden = hidden
        self.targets = targets
        self.top = zeros - math.inf
        self.own = zeros
        self.total = zeros
        self.squares = zeros if with_collisions else None
        self.mean = torch.zeros(hidden.shape, device=hidden.device) if with_gradient else None

    def add(self, head: nn.Linear, transform: LogitTransform, start: int, stop: int) -> None:
        """Adds the vocabulary from `start` to `stop`."""
        weight = head.weight[start:stop]
        logits = transform(F.linear(self.hidden, weight, None if head.bias is None else head.bias[start:stop]))
        index = (self.targets - start).clamp(0, len(weight) - 1)
        self.own = torch.where(self.targets - start == index, logits.gather(1, index), self.own)
        slopes = transform.slopes(logits) if self.mean is not None else None

        # A larger top makes all earlier terms smaller: those of `total` and `mean` by exp(top - new_top), squared
        # ones by its square. At the first block `top` is minus infinity, and 0 times nothing is nothing.
        new_top = torch.maximum(self.top, logits.amax(1, keepdim=True))
        shrink = (self.top - new_top).exp_()
        self.top = new_top
        masses = logits.sub_(new_top).exp_()
        self.total = self.total * shrink + masses.sum(1, keepdim=True)
        if self.squares is not None:
            self.squares = self.squares * shrink.square() + masses.square().sum(1, keepdim=True)
        if self.mean is not None:
            weighted = masses if slopes is None else masses * slopes
            self.mean.mul_(shrink).add_(weighted.to(weight.dtype) @ weight)

    def result(self, head: nn.Linear, transform: LogitTransform) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs [N], their gradients [N, H] and collisions [N]; the latter two are empty unless they are wanted."""
        log_total = self.total.log()
        values = self.own - self.top - log_total
        gradient = collided = values[:0, 0]
        if self.mean is not None:
            slopes = transform.slopes(self.own)
            target_weight = head.weight[self.targets[:, 0]].float()
            own = target_weight if slopes is None else slopes * target_weight
            gradient = (transform.factor * (own - self.mean / self.total)).to(self.hidden.dtype)
        if self.squares is not None:
            collided = (self.squares.log() - 2 * log_total)[:, 0]
        return values[:, 0], gradient, collided


def _logps(
    head: nn.Module, transform: LogitTransform, hidden: Tensor, targets: Tensor, with_collisions: bool
) -> tuple[Tensor, Tensor]:
    """Log-probs [N], and collisions [N] or, without `with_collisions`, [0]."""
    logits = transform(head(hidden))
    return -F.cross_entropy(logits, targets, reduction="none"), collisions(logits if with_collisions else logits[:0])


def has_whole_weight(layer: nn.Module) -> bool:
    """Whether a layer is a matrix product with a plain, complete weight: not quantised, sharded or wrapped."""
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
        return False
    return tuple(layer.weight.shape) == (layer.out_features, layer.in_features)


def _trained(head: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in head.parameters())
