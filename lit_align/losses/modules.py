"""The losses as modules: hyper-parameters around the pure functions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lit_align.losses.functional import dpo_loss, rso_hinge_loss, slic_hf_loss
from lit_align.losses.types import LossOutput, PairLogps, PreferenceLoss


class DPO(PreferenceLoss):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290).

    Args:
        beta: strength of the pull towards the reference, > 0.
        label_smoothing: assumed probability that a pair's label is flipped, in [0, 0.5).

    Raises:
        ValueError: where a hyper-parameter is out of its range.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        _check("beta", beta, beta > 0, "> 0")
        _check("label_smoothing", label_smoothing, 0 <= label_smoothing < 0.5, "in [0, 0.5)")
        self.beta = beta
        self.label_smoothing = label_smoothing

    def forward(self, pairs: PairLogps) -> LossOutput:
        references = pairs.references()
        losses = dpo_loss(
            pairs.policy_chosen_logps, pairs.policy_rejected_logps, *references, self.beta, self.label_smoothing
        )
        return LossOutput(losses, *_log_ratio_rewards(pairs, self.beta))


class RSOHinge(PreferenceLoss):
    """The reference-normalised hinge of RSO (Liu et al. 2023, arXiv 2309.06657).

    Args:
        beta: scale of the log-ratios, > 0; 1 / beta is the margin in nats.

    Raises:
        ValueError: where beta is not positive.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        _check("beta", beta, beta > 0, "> 0")
        self.beta = beta

    def forward(self, pairs: PairLogps) -> LossOutput:
        references = pairs.references()
        losses = rso_hinge_loss(pairs.policy_chosen_logps, pairs.policy_rejected_logps, *references, self.beta)
        return LossOutput(losses, *_log_ratio_rewards(pairs, self.beta))


class SLiCHF(PreferenceLoss):
    """SLiC-HF as published (Zhao et al. 2023, arXiv 2305.10425): calibration without a reference model.

    The rewards are the policy's log-probs themselves: the hinge compares nothing else.

    Args:
        delta: margin in nats between chosen and rejected, > 0.
        lambda_: weight of the regulariser, >= 0. It multiplies a sum over tokens, as in the paper.
        target: what the regulariser keeps likely: the chosen completion, or the `target` of each row
            (such as the SFT target).

    Raises:
        ValueError: where a hyper-parameter is out of its range.
    """

    needs_reference = False

    def __init__(self, delta: float = 1.0, lambda_: float = 0.1, target: Literal["chosen", "row"] = "chosen") -> None:
        super().__init__()
        _check("delta", delta, delta > 0, "> 0")
        _check("lambda_", lambda_, lambda_ >= 0, ">= 0")
        _check("target", target, target in ("chosen", "row"), '"chosen" or "row"')
        self.delta = delta
        self.lambda_ = lambda_
        self.target = target
        self.needs_target = target == "row"

    def forward(self, pairs: PairLogps) -> LossOutput:
        chosen, rejected = pairs.policy_chosen_logps, pairs.policy_rejected_logps
        target = pairs.policy_target_logps if self.needs_target else chosen
        if target is None:
            raise ValueError(
                'SLiCHF(target="row") regularises towards each row\'s `target`, but the pairs came without one: '
                'add the column `target` to the data, or set target: "chosen".'
            )
        losses = slic_hf_loss(chosen, rejected, target, self.delta, self.lambda_)
        regulariser = (-self.lambda_ * target).detach()
        metrics = {"slic/hinge": losses.detach() - regulariser, "slic/regulariser": regulariser}
        return LossOutput(losses, chosen.detach(), rejected.detach(), metrics)


def _log_ratio_rewards(pairs: PairLogps, beta: float) -> tuple[Tensor, Tensor]:
    """beta * log [pi / ref] of the chosen and the rejected completions, each [B], detached."""
    reference_chosen, reference_rejected = pairs.references()
    chosen = beta * (pairs.policy_chosen_logps - reference_chosen)
    rejected = beta * (pairs.policy_rejected_logps - reference_rejected)
    return chosen.detach(), rejected.detach()


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(f"`{name}` must be {expected}, but it is {value!r}.")
