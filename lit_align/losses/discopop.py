"""DiscoPOP: the log-ratio modulated loss that a language model discovered."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.base import LogRatioLoss, check


def discopop_loss(chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.05, tau: float = 0.05) -> Tensor:
    """DiscoPOP's losses [B]; see :class:`DiscoPOP`.

    Args:
        chosen_ratios: [B] log [pi / ref] of the chosen completions, in nats.
        rejected_ratios: [B] log [pi / ref] of the rejected completions, in nats.
        beta: > 0.
        tau: in (0, 1].

    Example:
        >>> discopop_loss(torch.zeros(1), torch.zeros(1))  # (ln 2 + 1) / 2
        tensor([0.8466])
    """
    logits = beta * (chosen_ratios - rejected_ratios)
    # Eq. 5 of arXiv 2406.08414: (1 - m) * -log sigmoid(z) + m * exp(-z), m = sigmoid(z / tau);
    # m * exp(-z) is one exponential, since for z far below 0 the product would be 0 * inf
    logistic = -torch.sigmoid(-logits / tau) * F.logsigmoid(logits)
    return logistic + torch.exp(F.logsigmoid(logits / tau) - logits)


class DiscoPOP(LogRatioLoss):
    """Discovered preference optimisation, LRML (Lu et al. 2024, arXiv 2406.08414, eq. 5).

    (1 - m) * -log sigmoid(z) + m * exp(-z) with z = beta * [log pi(w)/ref(w) - log pi(l)/ref(l)] and
    m = sigmoid(z / tau). It is not convex: just below z = 0 it rises.

    Args:
        beta: scale of the log-ratios, > 0. The paper takes 0.05.
        tau: width of the change from one part to the other, in (0, 1]; above 1 the loss would be unbounded
            exponentially. The paper takes 0.05.

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    def __init__(self, beta: float = 0.05, tau: float = 0.05) -> None:
        super().__init__(beta)
        check("tau", tau, 0 < tau <= 1, "in (0, 1]")
        self.tau = tau

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return discopop_loss(chosen, rejected, self.beta, self.tau)
