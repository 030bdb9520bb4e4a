"""Losses without a reference model: SimPO, CPO, ORPO."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.base import check
from lit_align.losses.nll import Normalize, check_normalize, nll_loss
from lit_align.losses.types import LossOutput, PairLogps, PreferenceLoss


def simpo_loss(chosen_means: Tensor, rejected_means: Tensor, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """SimPO's losses [B]; see :class:`SimPO`.

    Args:
        chosen_means: [B] log pi(y|x) / |y| of the chosen completions, in nats per token.
        rejected_means: [B] log pi(y|x) / |y| of the rejected completions, in nats per token.
        beta: > 0.
        gamma: >= 0.

    Example:
        >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.5]))
        tensor([0.6931])
    """
    return -F.logsigmoid(beta * (chosen_means - rejected_means) - gamma)  # Eq. 6 of arXiv 2405.14734


def cpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, beta: float = 0.1) -> Tensor:
    """The preference term of CPO, [B]; see :class:`CPO`.

    Args:
        policy_chosen_logps: [B] log pi(chosen | prompt), in nats.
        policy_rejected_logps: [B] log pi(rejected | prompt), in nats.
        beta: > 0.

    Example:
        >>> cpo_loss(torch.zeros(1), torch.zeros(1))
        tensor([0.6931])
    """
    return -F.logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps))


def orpo_loss(chosen_means: Tensor, rejected_means: Tensor) -> Tensor:
    """The odds-ratio term of ORPO, [B]; see :class:`ORPO`.

    Args:
        chosen_means: [B] log pi(y|x) / |y| of the chosen completions, in nats per token.
        rejected_means: [B] log pi(y|x) / |y| of the rejected completions, in nats per token.

    Example:
        >>> orpo_loss(torch.tensor([0.75]).log(), torch.tensor([0.5]).log())  # odds 3 and 1
        tensor([0.2877])
    """
    return -F.logsigmoid(_log_odds(chosen_means) - _log_odds(rejected_means))  # Eq. 7 of arXiv 2403.07691


def _log_odds(logps: Tensor) -> Tensor:
    """log [p / (1 - p)], finite even if p rounds to 1."""
    below_one = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return below_one - torch.log(-torch.expm1(below_one))


class SimPO(PreferenceLoss):
    """Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    -log sigmoid(beta / |w| * log pi(w) - beta / |l| * log pi(l) - gamma), |y| the completion's tokens. The rewards
    are beta * log pi(y) / |y|.

    Args:
        beta: scale of the mean log-probs, > 0. The paper takes 2 to 2.5.
        gamma: margin between the rewards, >= 0. The paper takes 0.3 to 1.6, about half of beta.

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    needs_reference = False

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        super().__init__()
        check("beta", beta, beta > 0, "> 0")
        check("gamma", gamma, gamma >= 0, ">= 0")
        self.beta = beta
        self.gamma = gamma

    def forward(self, pairs: PairLogps) -> LossOutput:
        chosen, rejected = pairs.policy_means()
        losses = simpo_loss(chosen, rejected, self.beta, self.gamma)
        return LossOutput(losses, (self.beta * chosen).detach(), (self.beta * rejected).detach())


class CPO(PreferenceLoss):
    """Contrastive preference optimisation (Xu et al. 2024, arXiv 2401.08417).

    -log sigmoid(beta * [log pi(w) - log pi(l)]) - alpha * log pi(w): DPO with a uniform reference, and the
    likelihood of the chosen completion. The rewards are beta * log pi(y).

    Args:
        beta: scale of the log-probs, > 0.
        alpha: weight of the likelihood, >= 0. The paper takes 1.
        normalize: the divisor of the likelihood, as in :class:`NLL`: `sum` as in the paper; the authors' code and
            other implementations use `batch`.

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    needs_reference = False

    def __init__(self, beta: float = 0.1, alpha: float = 1.0, normalize: Normalize = "sum") -> None:
        super().__init__()
        check("beta", beta, beta > 0, "> 0")
        check("alpha", alpha, alpha >= 0, ">= 0")
        check_normalize("normalize", normalize)
        self.beta = beta
        self.alpha = alpha
        self.normalize: Normalize = normalize
        self.per_pair = normalize != "batch"

    def forward(self, pairs: PairLogps) -> LossOutput:
        chosen = pairs.policy_chosen_logps
        rejected = pairs.policy_rejected_logps
        prefer = cpo_loss(chosen, rejected, self.beta)
        nll = nll_loss(chosen, pairs.chosen_lengths, self.normalize)
        metrics = {"cpo/prefer": prefer.detach(), "cpo/nll": nll.detach()}
        rewards = (self.beta * chosen).detach(), (self.beta * rejected).detach()
        return LossOutput(prefer + self.alpha * nll, *rewards, metrics)


class ORPO(PreferenceLoss):
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691, eqs. 6 and 7).

    -log pi(w) / |w| - lambda * log sigmoid(log [odds(w) / odds(l)]) with odds(y) = p / (1 - p) and
    p = exp(log pi(y) / |y|). The rewards are log pi(y) / |y|, with which the odds grow.

    The likelihood is that of the completion. Other implementations average it over the micro-batch
    (`normalize: batch`) and also count the prompt's tokens; this one never does.

    Args:
        lambda_: weight of the odds ratio, > 0. The paper takes 0.1 to 0.25.
        normalize: the divisor of the likelihood, as in :class:`NLL`.

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    needs_reference = False

    def __init__(self, lambda_: float = 0.1, normalize: Normalize = "completion") -> None:
        super().__init__()
        check("lambda_", lambda_, lambda_ > 0, "> 0")
        check_normalize("normalize", normalize)
        self.lambda_ = lambda_
        self.normalize: Normalize = normalize
        self.per_pair = normalize != "batch"

    def forward(self, pairs: PairLogps) -> LossOutput:
        chosen, rejected = pairs.policy_means()
        odds = orpo_loss(chosen, rejected)
        nll = nll_loss(pairs.policy_chosen_logps, pairs.chosen_lengths, self.normalize)
        metrics = {"orpo/odds_ratio": odds.detach(), "orpo/nll": nll.detach()}
        return LossOutput(nll + self.lambda_ * odds, chosen.detach(), rejected.detach(), metrics)
