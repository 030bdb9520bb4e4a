"""SPPO: regresses log-ratios on the probability of winning."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_align.losses.base import LogRatioLoss, check
from lit_align.losses.types import LossOutput, PairLogps


def sppo_loss(
    chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 1e-3, chosen_wins: float | Tensor = 1.0
) -> Tensor:
    """SPPO's losses [B]; see :class:`SPPO` and :class:`SoftSPPO`.

    Args:
        chosen_ratios: [B] log [pi / ref] of the chosen completions, in nats.
        rejected_ratios: [B] log [pi / ref] of the rejected completions, in nats.
        beta: > 0.
        chosen_wins: the probability that the chosen completion beats the rejected one, [B] or one for all.

    Example:
        >>> sppo_loss(torch.tensor([1.0]), torch.tensor([-1.0]), beta=0.5)
        tensor([0.])
        >>> sppo_loss(torch.tensor([1.0]), torch.tensor([-1.0]), beta=0.5, chosen_wins=0.5)
        tensor([2.])
    """
    # Eq. 4.7 of arXiv 2405.00675: (log pi / ref - eta * (P(y wins) - 1 / 2))^2 for both, eta = 1 / beta
    target = (chosen_wins - 0.5) / beta
    return (chosen_ratios - target).square() + (rejected_ratios + target).square()


class SPPO(LogRatioLoss):
    """Self-play preference optimisation, hard: the chosen completion wins for sure (Wu et al. 2024, arXiv 2405.00675).

    (log pi(w)/ref(w) - 1 / (2 beta))^2 + (log pi(l)/ref(l) + 1 / (2 beta))^2: eq. 4.7 with P = 1 for the chosen
    and 0 for the rejected completion. In the paper the reference is the policy of the iteration before and the
    completions are its own: use on-policy pairs and refresh the reference with each round.

    Args:
        beta: > 0, 1 / eta in the paper, which takes 1e-3. The loss starts at 1 / (2 beta^2), so
            choose the learning rate or gradient clipping to fit.

    Raises:
        ValueError: if beta is not positive.
    """

    def __init__(self, beta: float = 1e-3) -> None:
        super().__init__(beta)

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return sppo_loss(chosen, rejected, self.beta)


class SoftSPPO(SPPO):
    """Self-play preference optimisation with the judge's probability (Wu et al. 2024, arXiv 2405.00675, eq. 4.7).

    (log pi(w)/ref(w) - (P - 1/2) / beta)^2 + (log pi(l)/ref(l) + (P - 1/2) / beta)^2 with P the probability that
    the chosen completion beats the rejected one, from the pair's `margin` (chosen minus rejected score). In the
    paper P is a completion's mean probability of beating K samples; a single pair has only its own difference.

    Args:
        beta: > 0, 1 / eta in the paper, which takes 1e-3.
        margin: how P follows from the margin: `logit`, P = sigmoid(margin), for scores of a Bradley-Terry reward
            model; `probability`, P = (1 + margin) / 2, for scores that are mean probabilities of winning, as those
            of pairwise judges, whose margins are in [-1, 1].

    Raises:
        ValueError: if a hyper-parameter is out of its range, or, when called, a pair has no margin or, with
            `probability`, one outside [-1, 1].
    """

    def __init__(self, beta: float = 1e-3, margin: Literal["logit", "probability"] = "logit") -> None:
        super().__init__(beta)
        check("margin", margin, margin in ("logit", "probability"), '"logit" or "probability"')
        self.margin = margin

    def forward(self, pairs: PairLogps) -> LossOutput:
        chosen, rejected = pairs.log_ratios()
        chosen_wins = self._chosen_wins(pairs).to(chosen.dtype)
        losses = sppo_loss(chosen, rejected, self.beta, chosen_wins)
        output = self.output(losses, chosen, rejected)
        output.metrics["sppo/chosen_wins"] = chosen_wins
        return output

    def _chosen_wins(self, pairs: PairLogps) -> Tensor:
        if pairs.margin is None or bool(pairs.margin.isnan().any()):
            raise ValueError(
                "SoftSPPO needs the judge's scores of every pair, but a pair came without: give the rows scores or "
                "relabel them with a judge, or use SPPO, which takes the chosen completion to win for sure."
            )
        margin = pairs.margin.detach()
        if self.margin == "logit":
            return torch.sigmoid(margin)
        if bool((margin.abs() > 1).any()):
            raise ValueError(
                f'SoftSPPO(margin="probability") takes differences of two probabilities, in [-1, 1], but a pair has '
                f'the margin {margin[margin.abs().argmax()].item():g}: for scores on another scale set margin: "logit".'
            )
        return (1 + margin) / 2
