"""EXO: the reverse KL between the policy's preference and the label's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.base import LogRatioLoss, check


def exo_loss(
    chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.1, label_smoothing: float = 1e-3
) -> Tensor:
    """EXO's losses [B]; see :class:`EXO`.

    Args:
        chosen_ratios: [B] log [pi / ref] of the chosen completions, in nats.
        rejected_ratios: [B] log [pi / ref] of the rejected completions, in nats.
        beta: > 0.
        label_smoothing: in (0, 0.5).

    Example:
        >>> import torch
        >>> exo_loss(torch.zeros(1), torch.zeros(1), label_smoothing=0.25)  # ln(4 / 3) / 2
        tensor([0.1438])
    """
    logits = beta * (chosen_ratios - rejected_ratios)
    # Eq. 16 of arXiv 2402.00856 with K = 2: KL(p || q), p = softmax of beta * log-ratios, q = (1 - e, e)
    chosen = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    rejected = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return chosen + rejected


class EXO(LogRatioLoss):
    """Efficient exact optimisation from preferences (Ji et al. 2024, arXiv 2402.00856, eq. 16 with two completions).

    KL(p || q) with p = (sigmoid(z), sigmoid(-z)), z = beta * [log pi(w)/ref(w) - log pi(l)/ref(l)], and the label
    q = (1 - e, e). It is mode-seeking; DPO minimises the forward KL.

    Args:
        beta: scale of the log-ratios, > 0 (beta_pi in the paper).
        label_smoothing: e, in (0, 0.5); 0 would make the KL infinite. The paper takes 1e-3.

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 1e-3) -> None:
        super().__init__(beta)
        check("label_smoothing", label_smoothing, 0 < label_smoothing < 0.5, "in (0, 0.5)")
        self.label_smoothing = label_smoothing

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return exo_loss(chosen, rejected, self.beta, self.label_smoothing)
