"""f-DPO: DPO under other divergences from the reference."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.base import LogRatioLoss, check, smoothed_sigmoid_loss
from lit_align.losses.types import PairLogps

MAX_EXPONENT = 40.0
"""Exponent, in nats, above which exp is continued as its tangent: finite in float32, and with a gradient."""


class Divergence(ABC):
    """An f-divergence, defined by the derivative f' of its generator (table 1 of arXiv 2309.16240)."""

    @abstractmethod
    def derivative(self, log_ratios: Tensor) -> Tensor:
        """Computes f'(t) for t = exp(log_ratios), [B], shifted so that f'(1) = 0; the shift cancels in a pair."""


class ReverseKL(Divergence):
    """f'(t) = log t, shifted: DPO itself."""

    def derivative(self, log_ratios: Tensor) -> Tensor:
        return log_ratios


class ForwardKL(Divergence):
    """f'(t) = 1 - 1 / t, shifted: covers all of the reference's modes."""

    def derivative(self, log_ratios: Tensor) -> Tensor:
        return 1 - _exp(-log_ratios)


class JensenShannon(Divergence):
    """f'(t) = log [2t / (1 + t)]: bounded above, so that a likely completion gains no more."""

    def derivative(self, log_ratios: Tensor) -> Tensor:
        return math.log(2) + F.logsigmoid(log_ratios)


class AlphaDivergence(Divergence):
    """f'(t) = (1 - t^-alpha) / alpha: between reverse KL (alpha to 0) and forward KL (alpha to 1).

    Args:
        alpha: in (0, 1). Some implementations define alpha as 1 minus this one.

    Raises:
        ValueError: if alpha is out of its range.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        check("alpha", alpha, 0 < alpha < 1, "in (0, 1)")
        self.alpha = alpha

    def derivative(self, log_ratios: Tensor) -> Tensor:
        return (1 - _exp(-self.alpha * log_ratios)) / self.alpha


def _exp(exponents: Tensor) -> Tensor:
    clamped = exponents.clamp(max=MAX_EXPONENT)
    return torch.exp(clamped) * (1 + exponents - clamped)


def f_dpo_loss(chosen_scores: Tensor, rejected_scores: Tensor, beta: float = 0.1) -> Tensor:
    """f-DPO's losses [B]; see :class:`FDPO`.

    Args:
        chosen_scores: [B] f'(pi / ref) of the chosen completions.
        rejected_scores: [B] f'(pi / ref) of the rejected completions.
        beta: > 0.

    Example:
        >>> f_dpo_loss(torch.zeros(1), torch.zeros(1))
        tensor([0.6931])
    """
    return smoothed_sigmoid_loss(beta * (chosen_scores - rejected_scores))


class FDPO(LogRatioLoss):
    """f-DPO (Wang et al. 2023, arXiv 2309.16240): DPO with another divergence than the reverse KL.

    -log sigmoid(beta * [f'(pi(w)/ref(w)) - f'(pi(l)/ref(l))]). If f' contains an exponential (forward KL,
    alpha), it is continued as its tangent above exp(40), so that loss and gradient stay finite.

    Args:
        divergence: :class:`ReverseKL`, :class:`ForwardKL`, :class:`JensenShannon`, :class:`AlphaDivergence`, or a
            subclass of :class:`Divergence` of your own.
        beta: strength of the pull towards the reference, > 0.

    Raises:
        ValueError: if beta is not positive.
    """

    def __init__(self, divergence: Divergence, beta: float = 0.1) -> None:
        super().__init__(beta)
        self.divergence = divergence

    def scores(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        chosen, rejected = pairs.log_ratios()
        return self.divergence.derivative(chosen), self.divergence.derivative(rejected)

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return f_dpo_loss(chosen, rejected, self.beta)
