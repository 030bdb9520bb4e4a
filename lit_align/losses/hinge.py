"""Hinges: SLiC-HF as published, and RSO's over log-ratios to the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_align.losses.base import LogRatioLoss, check
from lit_align.losses.nll import Target, target_logps
from lit_align.losses.types import LossOutput, PairLogps, PreferenceLoss


def rso_hinge_loss(chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.1) -> Tensor:
    """RSO's hinge-norm losses [B]; see :class:`RSOHinge`.

    Args:
        chosen_ratios: [B] log [pi / ref] of the chosen completions, in nats.
        rejected_ratios: [B] log [pi / ref] of the rejected completions, in nats.
        beta: > 0; 1 / beta is the margin in nats.

    Example:
        >>> rso_hinge_loss(torch.tensor([2.0]), torch.zeros(1), beta=0.25)
        tensor([0.5000])
    """
    return torch.relu(1 - beta * (chosen_ratios - rejected_ratios))


def slic_hf_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    policy_target_logps: Tensor,
    delta: float = 1.0,
    lambda_: float = 0.1,
) -> Tensor:
    """SLiC-HF's losses [B]; see :class:`SLiCHF`.

    Args:
        policy_chosen_logps: [B] log pi(chosen | prompt), in nats.
        policy_rejected_logps: [B] log pi(rejected | prompt), in nats.
        policy_target_logps: [B] log pi(target | prompt) of the regulariser's target, in nats.
        delta: margin in nats between the two completions, > 0.
        lambda_: weight of the regulariser, >= 0.

    Example:
        >>> slic_hf_loss(torch.tensor([-2.0]), torch.tensor([-2.5]), torch.tensor([-2.0]), delta=1.0, lambda_=0.5)
        tensor([1.5000])
    """
    # max(0, delta - log pi(w|x) + log pi(l|x)) - lambda * log pi(target|x), arXiv 2305.10425
    return torch.relu(delta - policy_chosen_logps + policy_rejected_logps) - lambda_ * policy_target_logps


class RSOHinge(LogRatioLoss):
    """The reference-normalised hinge of RSO (Liu et al. 2023, arXiv 2309.06657, `hinge-norm`).

    max(0, 1 - beta * [log pi(w)/ref(w) - log pi(l)/ref(l)]).

    Args:
        beta: scale of the log-ratios, > 0 (gamma in the paper); 1 / beta is the margin in nats.

    Raises:
        ValueError: if beta is not positive.
    """

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return rso_hinge_loss(chosen, rejected, self.beta)


class SLiCHF(PreferenceLoss):
    """SLiC-HF as published (Zhao et al. 2023, arXiv 2305.10425): calibration without a reference model.

    max(0, delta - log pi(w) + log pi(l)) - lambda * log pi(target). The rewards are the policy's log-probs,
    which the hinge compares.

    Args:
        delta: margin in nats between chosen and rejected, > 0.
        lambda_: weight of the regulariser, >= 0. It multiplies a sum over tokens, as in the paper.
        target: the text that the regulariser keeps likely: the `chosen` completion, or for `row` the `target` of
            each row, such as the SFT target.

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    needs_reference = False

    def __init__(self, delta: float = 1.0, lambda_: float = 0.1, target: Target = "chosen") -> None:
        super().__init__()
        check("delta", delta, delta > 0, "> 0")
        check("lambda_", lambda_, lambda_ >= 0, ">= 0")
        check("target", target, target in ("chosen", "row"), '"chosen" or "row"')
        self.delta = delta
        self.lambda_ = lambda_
        self.needs_target = target == "row"

    def forward(self, pairs: PairLogps) -> LossOutput:
        chosen = pairs.policy_chosen_logps
        rejected = pairs.policy_rejected_logps
        target, _ = target_logps(pairs, self.needs_target)
        losses = slic_hf_loss(chosen, rejected, target, self.delta, self.lambda_)
        regulariser = (-self.lambda_ * target).detach()
        metrics = {"slic/hinge": losses.detach() - regulariser, "slic/regulariser": regulariser}
        return LossOutput(losses, chosen.detach(), rejected.detach(), metrics)
