"""NCA: noise contrastive alignment."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.base import LogRatioLoss


def nca_loss(chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.01) -> Tensor:
    """NCA's losses [B]; see :class:`NCA`.

    Args:
        chosen_ratios: [B] log [pi / ref] of the chosen completions, in nats.
        rejected_ratios: [B] log [pi / ref] of the rejected completions, in nats.
        beta: > 0.

    Example:
        >>> import torch
        >>> nca_loss(torch.zeros(1), torch.zeros(1))  # 2 ln 2
        tensor([1.3863])
    """
    chosen = beta * chosen_ratios
    rejected = beta * rejected_ratios
    # NCA for preference pairs, arXiv 2402.05369: the label is 1 for w and 0 for l, K = 2
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


class NCA(LogRatioLoss):
    """Noise contrastive alignment from preferences (Chen et al. 2024, arXiv 2402.05369, K = 2 completions).

    -log sigmoid(r_w) - log sigmoid(-r_w) / 2 - log sigmoid(-r_l) / 2 with r = beta * log pi/ref. It acts on each
    reward, not only on their difference, so that the chosen completion does not lose likelihood.

    Args:
        beta: scale of the log-ratios, > 0. The paper uses 0.01.

    Raises:
        ValueError: if beta is not positive.
    """

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__(beta)

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return nca_loss(chosen, rejected, self.beta)
