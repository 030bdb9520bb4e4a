"""Shared parts of the losses: the base class over log-ratios, the smoothed sigmoid, checks of hyper-parameters."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.types import LossOutput, PairLogps, PreferenceLoss


class LogRatioLoss(PreferenceLoss):
    """A loss over one score per completion: its log-ratio to the reference, unless `scores` is overridden.

    The reward of a completion is beta times its score.

    Args:
        beta: scale of the scores, > 0.

    Raises:
        ValueError: if beta is not positive.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        check("beta", beta, 0 < beta < math.inf, "> 0")
        self.beta = beta

    def scores(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """Computes the scores of the chosen and the rejected completions, each [B]."""
        return pairs.log_ratios()

    @abstractmethod
    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Computes the losses [B] from the scores of the chosen and the rejected completions, each [B]."""

    def forward(self, pairs: PairLogps) -> LossOutput:
        chosen, rejected = self.scores(pairs)
        return self.output(self.compare(chosen, rejected), chosen, rejected)

    def output(self, losses: Tensor, chosen: Tensor, rejected: Tensor) -> LossOutput:
        """Adds the rewards, beta times the scores, to the losses; each [B]."""
        return LossOutput(losses, (self.beta * chosen).detach(), (self.beta * rejected).detach())


def smoothed_sigmoid_loss(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(z) - e log sigmoid(-z), [B]: cross-entropy with labels that are wrong with probability e."""
    losses = -F.logsigmoid(logits)
    if label_smoothing == 0:
        return losses
    return (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-logits)


def check(name: str, value: object, valid: bool, expected: str) -> None:
    """Raises a ValueError with the hyper-parameter's name, the values allowed and its value, unless `valid`."""
    if not valid:
        raise ValueError(f"`{name}` must be {expected}, but it is {value!r}.")
