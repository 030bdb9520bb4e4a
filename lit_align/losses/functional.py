"""Losses over preference pairs as pure functions.

Notation: w chosen, l rejected, x prompt; `logps` are sums over completion tokens in nats, each [B].
Every function returns one value per pair, [B].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def log_ratio_margin(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
) -> Tensor:
    """log [pi(w|x) / ref(w|x)] - log [pi(l|x) / ref(l|x)], [B]."""
    return (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290).

    Args:
        policy_chosen_logps: [B].
        policy_rejected_logps: [B].
        reference_chosen_logps: [B].
        reference_rejected_logps: [B].
        beta: strength of the pull towards the reference, > 0.
        label_smoothing: assumed probability that a pair's label is flipped, in [0, 0.5).

    Example:
        >>> zero = torch.zeros(1)
        >>> dpo_loss(zero, zero, zero, zero)
        tensor([0.6931])
    """
    logits = beta * log_ratio_margin(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    # Eq. 7 of arXiv 2305.18290; with label smoothing eq. 3 of https://ericmitchell.ai/cdpo.pdf
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def slic_hf_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    policy_target_logps: Tensor,
    delta: float = 1.0,
    lambda_: float = 0.1,
) -> Tensor:
    """SLiC-HF as published (Zhao et al. 2023, arXiv 2305.10425): no reference model.

    Args:
        policy_chosen_logps: [B].
        policy_rejected_logps: [B].
        policy_target_logps: [B], log-probs of the regulariser's target.
        delta: margin in nats between the two completions, > 0.
        lambda_: weight of the regulariser, >= 0.

    Example:
        >>> slic_hf_loss(torch.tensor([-2.0]), torch.tensor([-2.5]), torch.tensor([-2.0]), delta=1.0, lambda_=0.5)
        tensor([1.5000])
    """
    # max(0, delta - log pi(w|x) + log pi(l|x)) - lambda * log pi(target|x), arXiv 2305.10425
    return torch.relu(delta - policy_chosen_logps + policy_rejected_logps) - lambda_ * policy_target_logps


def rso_hinge_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """SLiC's hinge on log-ratios to the reference, `hinge-norm` of RSO (Liu et al. 2023, arXiv 2309.06657).

    Args:
        policy_chosen_logps: [B].
        policy_rejected_logps: [B].
        reference_chosen_logps: [B].
        reference_rejected_logps: [B].
        beta: scale of the log-ratios, > 0 (gamma in the paper); 1 / beta is the margin in nats.

    Example:
        >>> rso_hinge_loss(torch.tensor([2.0]), torch.zeros(1), torch.zeros(1), torch.zeros(1), beta=0.25)
        tensor([0.5000])
    """
    margin = log_ratio_margin(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    return torch.relu(1 - beta * margin)
