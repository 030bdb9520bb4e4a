"""The Bradley-Terry loss of a reward model."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, centring: float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) + centring * (chosen + rejected)^2, one loss a pair.

    Under the model of Bradley & Terry ("Rank Analysis of Incomplete Block Designs", Biometrika 39, 1952) sigmoid(chosen
    - rejected) is the probability that the chosen answer wins, so the first term without margin is its negative
    log-likelihood (Eq. 1 of arXiv:2203.02155, for two answers). The margin is that of Eq. 2 of arXiv:2307.09288: better
    by far should be rewarded by far. Rewards of a prompt are known up to a constant; the second term (Eq. 2 of
    arXiv:2312.09244, there with the weight 0.01) keeps their mean at 0.

    Args:
        chosen: [B] rewards of the chosen answers.
        rejected: [B] rewards of the rejected answers.
        margin: [B] what the difference of rewards should at least be; None for 0.
        centring: weight of the second term, at least 0.

    Returns:
        [B] losses in nats.
    """
    difference = chosen - rejected
    losses = -logsigmoid(difference if margin is None else difference - margin)
    return losses + centring * (chosen + rejected) ** 2 if centring else losses
