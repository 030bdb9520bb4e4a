"""Sums of losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lit_align.losses.base import check
from lit_align.losses.dpo import DPO
from lit_align.losses.nll import NLL
from lit_align.losses.types import LossOutput, PairLogps, PreferenceLoss


class WeightedSum(PreferenceLoss):
    """A weighted sum of losses. Its `needs_*` attributes are True if those of any of the losses are.

    The rewards are those of the first loss. Each loss is logged before weighting as `loss/NAME` with the name of its
    class; a second loss of the same class as `loss/NAME_2`, and so on.

    Args:
        losses: the losses to sum, at least one.
        weights: one weight per loss, >= 0; None gives each the weight 1.

    Raises:
        ValueError: if `losses` is empty, or there is not one weight >= 0 per loss.
    """

    def __init__(self, losses: list[PreferenceLoss], weights: list[float] | None = None) -> None:
        super().__init__()
        check("losses", losses, len(losses) > 0, "a list of at least one loss")
        weights = [1.0] * len(losses) if weights is None else weights
        valid = len(weights) == len(losses) and all(0 <= weight < math.inf for weight in weights)
        check("weights", weights, valid, f"one number >= 0 for each of the {len(losses)} losses")
        self.losses = nn.ModuleList(losses)
        self.weights = list(weights)
        self.names = _names(losses)
        self.needs_reference = any(loss.needs_reference for loss in losses)
        self.needs_token_logps = any(loss.needs_token_logps for loss in losses)
        self.needs_target = any(loss.needs_target for loss in losses)
        self.needs_collisions = any(loss.needs_collisions for loss in losses)
        self.per_pair = all(loss.per_pair for loss in losses)

    def forward(self, pairs: PairLogps) -> LossOutput:
        outputs = [loss(pairs) for loss in self._terms()]
        terms = [weight * output.losses for weight, output in zip(self.weights, outputs, strict=True)]
        metrics: dict[str, Tensor] = {}
        for (name, suffix), output in zip(self.names, outputs, strict=True):
            metrics |= {key + suffix: value for key, value in output.metrics.items()}
            metrics[f"loss/{name}{suffix}"] = output.losses.detach()
        return LossOutput(torch.stack(terms).sum(0), outputs[0].chosen_rewards, outputs[0].rejected_rewards, metrics)

    def reference_changed(self) -> None:
        for loss in self._terms():
            loss.reference_changed()

    def _terms(self) -> list[PreferenceLoss]:
        return [cast(PreferenceLoss, loss) for loss in self.losses]


class RPO(WeightedSum):
    """DPO with an NLL term, of iterative reasoning preference optimisation (Pang et al. 2024, arXiv 2404.19733).

    -log sigmoid(beta * [log pi(w)/ref(w) - log pi(l)/ref(l)]) - alpha * log pi(w) / |w|.

    Args:
        beta: strength of the pull towards the reference, > 0.
        alpha: weight of the likelihood, >= 0. The paper takes 1.

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    def __init__(self, beta: float = 0.1, alpha: float = 1.0) -> None:
        check("alpha", alpha, 0 <= alpha < math.inf, ">= 0")
        super().__init__([DPO(beta), NLL()], [1.0, alpha])


def _names(losses: Sequence[PreferenceLoss]) -> list[tuple[str, str]]:
    """The name of each loss's class, and a suffix that numbers losses of the same class from the second on."""
    names = [type(loss).__name__ for loss in losses]
    counts = [names[:i].count(name) for i, name in enumerate(names)]
    return [(name, f"_{count + 1}" if count else "") for name, count in zip(names, counts, strict=True)]
