"""Weightings of another loss: LD-DPO weights tokens, WPO weights pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lit_align.losses.base import check
from lit_align.losses.dpo import DPO
from lit_align.losses.types import LossOutput, PairLogps, PreferenceLoss


def length_desensitized_sum(logps: Tensor, mask: Tensor, shared_lengths: Tensor, alpha: float) -> Tensor:
    """Sums token log-probs, with those beyond the shared length weighted by alpha: [B]; see :class:`LDDPO`.

    Args:
        logps: [B, C], 0 at padding, real tokens first.
        mask: [B, C] bool.
        shared_lengths: [B] number of tokens that count in full.
        alpha: in [0, 1].

    Example:
        >>> length_desensitized_sum(-torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool), torch.tensor([2]), 0.5)
        tensor([-3.])
    """
    shared = mask.cumsum(-1) <= shared_lengths[:, None]
    return torch.where(shared, logps, alpha * logps).sum(-1)


def wpo_weights(logps: Tensor, lengths: Tensor, collisions: Tensor | float = 0.0) -> Tensor:
    """WPO's weights of the completions, [B], detached; see :class:`WPO`.

    Args:
        logps: [B] log pi(y|x), sums over tokens, in nats.
        lengths: [B] tokens.
        collisions: [B] sums over tokens of log sum_v pi(v | ...)^2; 0 gives the weights without alignment.

    Example:
        >>> wpo_weights(torch.tensor([0.25]).log(), torch.tensor([2]))  # sqrt(0.25)
        tensor([0.5000])
    """
    return torch.exp((logps - collisions) / lengths).detach()


class LDDPO(PreferenceLoss):
    """LD-DPO's weighting of tokens in any loss, DPO by default (Liu et al. 2024, arXiv 2409.06411).

    With l the length of the shorter completion of a pair, log p(y) becomes the sum of the first l tokens' log-probs
    plus alpha times the sum of the others', under both the policy and the reference, so that the surplus of the longer
    completion counts less. A loss that divides by lengths still divides by those of the whole completions.

    Args:
        alpha: weight of the tokens beyond the shared length, in [0, 1]; 1 changes nothing. The best value
            depends on the model.
        loss: the loss computed from these sums; None takes `DPO()`. To use both weightings put this one into
            :class:`WPO`, not the other way round: WPO weights whole completions.

    Raises:
        ValueError: if alpha is out of its range, `loss` contains WPO, or, when called, the pairs came
            without log-probs of single tokens.
    """

    needs_token_logps = True

    def __init__(self, alpha: float = 0.5, loss: PreferenceLoss | None = None) -> None:
        super().__init__()
        check("alpha", alpha, 0 <= alpha <= 1, "in [0, 1]")
        self.loss = loss if loss is not None else DPO()
        if any(isinstance(module, WPO) for module in self.loss.modules()):
            raise ValueError(
                "`loss` must not hold WPO, whose weights are of whole completions: put this loss into WPO."
            )
        self.alpha = alpha
        self.needs_reference = self.loss.needs_reference
        self.needs_target = self.loss.needs_target
        self.needs_collisions = self.loss.needs_collisions
        self.per_pair = self.loss.per_pair

    def forward(self, pairs: PairLogps) -> LossOutput:
        tokens = pairs.tokens
        if tokens is None:
            raise ValueError(
                "This loss weights single tokens, but the pairs came without their log-probs. A loss that needs "
                "them says so with the class attribute `needs_token_logps = True`."
            )
        shared = torch.minimum(pairs.chosen_lengths, pairs.rejected_lengths)

        def chosen(logps: Tensor) -> Tensor:
            return length_desensitized_sum(logps, tokens.chosen_mask, shared, self.alpha)

        def rejected(logps: Tensor) -> Tensor:
            return length_desensitized_sum(logps, tokens.rejected_mask, shared, self.alpha)

        reference_chosen = tokens.reference_chosen_logps
        reference_rejected = tokens.reference_rejected_logps
        weighted = replace(
            pairs,
            policy_chosen_logps=chosen(tokens.policy_chosen_logps),
            policy_rejected_logps=rejected(tokens.policy_rejected_logps),
            reference_chosen_logps=chosen(reference_chosen) if reference_chosen is not None else None,
            reference_rejected_logps=rejected(reference_rejected) if reference_rejected is not None else None,
        )
        return self.loss(weighted)

    def reference_changed(self) -> None:
        self.loss.reference_changed()


class WPO(PreferenceLoss):
    """WPO's weighting of pairs in any loss, DPO by default (Zhou et al. 2024, arXiv 2406.11827, eq. 2).

    The loss times w(chosen) * w(rejected), without gradient: pairs that the policy would write itself count more.
    w(y) = exp(mean over tokens of log [pi(y_t) / sum_v pi(v)^2]) with the paper's sampled alignment, by which a
    completion sampled from the policy has a weight about 1; without alignment w(y) = exp(mean of log pi(y_t)).
    The rewards are those of the loss inside.

    Args:
        loss: the loss to weight; None takes `DPO()`. Its `per_pair` must be True.
        alignment: `sampled`, the paper's choice, or `none`, which needs only log-probs.

    Raises:
        ValueError: if the loss mixes pairs, `alignment` is neither of the two, or, when called, the pairs came
            without the collisions that `sampled` needs.
    """

    def __init__(self, loss: PreferenceLoss | None = None, alignment: Literal["sampled", "none"] = "sampled") -> None:
        super().__init__()
        check("alignment", alignment, alignment in ("sampled", "none"), '"sampled" or "none"')
        self.loss = loss if loss is not None else DPO()
        check("loss", type(self.loss).__name__, self.loss.per_pair, "a loss that does not mix pairs (`per_pair`)")
        self.needs_reference = self.loss.needs_reference
        self.needs_target = self.loss.needs_target
        self.needs_token_logps = self.loss.needs_token_logps
        self.needs_collisions = alignment == "sampled" or self.loss.needs_collisions
        self.alignment = alignment

    def forward(self, pairs: PairLogps) -> LossOutput:
        output = self.loss(pairs)
        chosen_collisions, rejected_collisions = self._collisions(pairs)
        weights = wpo_weights(pairs.policy_chosen_logps, pairs.chosen_lengths, chosen_collisions) * wpo_weights(
            pairs.policy_rejected_logps, pairs.rejected_lengths, rejected_collisions
        )
        metrics = {**output.metrics, "wpo/weight": weights}
        return LossOutput(weights * output.losses, output.chosen_rewards, output.rejected_rewards, metrics)

    def _collisions(self, pairs: PairLogps) -> tuple[Tensor | float, Tensor | float]:
        if self.alignment == "none":
            return 0.0, 0.0
        if pairs.policy_chosen_collisions is None or pairs.policy_rejected_collisions is None:
            raise ValueError(
                'WPO(alignment="sampled") needs the collision log-probs of the policy, but the pairs came without. A '
                "loss that needs them says so with the attribute `needs_collisions = True`."
            )
        return pairs.policy_chosen_collisions, pairs.policy_rejected_collisions

    def reference_changed(self) -> None:
        self.loss.reference_changed()
