"""BCO: a binary classifier with the reward as its logit."""

from __future__ import annotations

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.base import LogRatioLoss
from lit_align.losses.types import LossOutput, PairLogps


def bco_loss(chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.1, shift: float | Tensor = 0.0) -> Tensor:
    """BCO's losses [B]; see :class:`BCO`.

    Args:
        chosen_ratios: [B] log [pi / ref] of the chosen completions, in nats.
        rejected_ratios: [B] log [pi / ref] of the rejected completions, in nats.
        beta: > 0.
        shift: subtracted from every reward.

    Example:
        >>> bco_loss(torch.zeros(1), torch.zeros(1))  # 2 ln 2
        tensor([1.3863])
    """
    # -log sigmoid(r_w - shift) - log sigmoid(-(r_l - shift)), arXiv 2404.04656
    return -F.logsigmoid(beta * chosen_ratios - shift) - F.logsigmoid(shift - beta * rejected_ratios)


class BCO(LogRatioLoss):
    """Binary classifier optimisation on pairs (Jung et al. 2024, arXiv 2404.04656).

    -log sigmoid(r_w - d) - log sigmoid(-(r_l - d)) with r = beta * log pi/ref and the reward shift d, the mean
    reward of chosen and rejected completions.

    d is the mean over all training batches before the current one, over all ranks, and 0 before the first, so a
    pair's loss does not depend on its micro-batch. It is a buffer, saved in the checkpoint. Only training batches
    change it, and a refresh of the reference sets it back to 0, as all rewards are 0 again then. In training every
    rank must call the loss equally often.

    Args:
        beta: scale of the log-ratios, > 0.
        reward_shift: True shifts rewards by their running mean, as in the paper; False takes d = 0.

    Raises:
        ValueError: if beta is not positive.
    """

    reward_mean: Tensor
    reward_count: Tensor

    def __init__(self, beta: float = 0.1, reward_shift: bool = True) -> None:
        super().__init__(beta)
        self.reward_shift = reward_shift
        if reward_shift:
            self.register_buffer("reward_mean", torch.zeros(()))
            self.register_buffer("reward_count", torch.zeros((), dtype=torch.long))

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        # a copy: the update in place must not reach the graph of this batch
        return bco_loss(chosen, rejected, self.beta, self.reward_mean.clone() if self.reward_shift else 0.0)

    def forward(self, pairs: PairLogps) -> LossOutput:
        output = super().forward(pairs)
        if not self.reward_shift:
            return output
        output.metrics["bco/reward_shift"] = self.reward_mean.expand_as(output.losses).clone()
        if self.training:
            self._update(torch.cat([output.chosen_rewards, output.rejected_rewards]))
        return output

    def reference_changed(self) -> None:
        if self.reward_shift:
            self.reward_mean.zero_()
            self.reward_count.zero_()

    @torch.no_grad()
    def _update(self, rewards: Tensor) -> None:
        total = torch.stack([rewards.float().sum(), rewards.new_tensor(len(rewards), dtype=torch.float32)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        self.reward_count += total[1].long()
        self.reward_mean += (total[0] - total[1] * self.reward_mean) / self.reward_count
