"""APO: anchored preference optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_align.losses.base import LogRatioLoss


def apo_zero_loss(chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.1) -> Tensor:
    """APO-zero's losses [B]; see :class:`APOZero`.

    Args:
        chosen_ratios: [B] log [pi / ref] of the chosen completions, in nats.
        rejected_ratios: [B] log [pi / ref] of the rejected completions, in nats.
        beta: > 0.

    Example:
        >>> apo_zero_loss(torch.zeros(1), torch.zeros(1))
        tensor([1.])
    """
    # Eq. 7 of arXiv 2408.06266, plus 1
    return torch.sigmoid(-beta * chosen_ratios) + torch.sigmoid(beta * rejected_ratios)


def apo_down_loss(chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.1) -> Tensor:
    """APO-down's losses [B]; see :class:`APODown`. Arguments as in :func:`apo_zero_loss`.

    Example:
        >>> apo_down_loss(torch.zeros(1), torch.zeros(1))
        tensor([1.])
    """
    # Eq. 8 of arXiv 2408.06266, plus 1
    return torch.sigmoid(beta * chosen_ratios) + torch.sigmoid(-beta * (chosen_ratios - rejected_ratios))


class APOZero(LogRatioLoss):
    """Anchored preference optimisation, zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7).

    1 - sigmoid(r_w) + sigmoid(r_l) with r = beta * log pi/ref: the chosen completion is pushed up, the rejected one
    down, each for itself. For chosen completions that are better than the policy's own. The constant 1 is not in
    the paper: it keeps the loss in [0, 2].

    Args:
        beta: scale of the log-ratios, > 0.

    Raises:
        ValueError: if beta is not positive.
    """

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return apo_zero_loss(chosen, rejected, self.beta)


class APODown(LogRatioLoss):
    """Anchored preference optimisation, down (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8).

    1 + sigmoid(r_w) - sigmoid(r_w - r_l) with r = beta * log pi/ref: both completions are pushed down, the rejected
    one more. For a policy that is better than its chosen completions. The constant 1 is not in the paper: it keeps
    the loss in [0, 2].

    Args:
        beta: scale of the log-ratios, > 0.

    Raises:
        ValueError: if beta is not positive.
    """

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return apo_down_loss(chosen, rejected, self.beta)
