"""DPO and two variants: for noisy labels, and with log-ratios per token."""

from __future__ import annotations

from torch import Tensor

from lit_align.losses.base import LogRatioLoss, check, smoothed_sigmoid_loss
from lit_align.losses.types import PairLogps


def dpo_loss(chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """DPO's losses [B]; see :class:`DPO`.

    Args:
        chosen_ratios: [B] log [pi / ref] of the chosen completions, in nats.
        rejected_ratios: [B] log [pi / ref] of the rejected completions, in nats.
        beta: > 0.
        label_smoothing: in [0, 0.5).

    Example:
        >>> import torch
        >>> dpo_loss(torch.zeros(1), torch.zeros(1))
        tensor([0.6931])
    """
    # Eq. 7 of arXiv 2305.18290; with label smoothing eq. 3 of https://ericmitchell.ai/cdpo.pdf
    return smoothed_sigmoid_loss(beta * (chosen_ratios - rejected_ratios), label_smoothing)


def robust_dpo_loss(
    chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """Robust DPO's losses [B]; see :class:`RobustDPO`. Arguments as in :func:`dpo_loss`.

    Example:
        >>> import torch
        >>> robust_dpo_loss(torch.zeros(1), torch.zeros(1))
        tensor([0.6931])
    """
    unflipped = dpo_loss(chosen_ratios, rejected_ratios, beta)
    flipped = dpo_loss(rejected_ratios, chosen_ratios, beta)
    # [(1 - e) L(w, l) - e L(l, w)] / (1 - 2 e), arXiv 2403.00409
    return ((1 - label_smoothing) * unflipped - label_smoothing * flipped) / (1 - 2 * label_smoothing)


class DPO(LogRatioLoss):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    -log sigmoid(beta * [log pi(w)/ref(w) - log pi(l)/ref(l)]). With `label_smoothing` e it is the conservative
    DPO of Mitchell 2023: (1 - e) times this loss plus e times the loss with w and l swapped.

    Args:
        beta: strength of the pull towards the reference, > 0.
        label_smoothing: assumed probability that a pair's label is flipped, in [0, 0.5).

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(beta)
        check("label_smoothing", label_smoothing, 0 <= label_smoothing < 0.5, "in [0, 0.5)")
        self.label_smoothing = label_smoothing

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return dpo_loss(chosen, rejected, self.beta, self.label_smoothing)


class RobustDPO(LogRatioLoss):
    """Provably robust DPO (Chowdhury et al. 2024, arXiv 2403.00409).

    [(1 - e) L(w, l) - e L(l, w)] / (1 - 2e) with L the loss of DPO: over pairs whose labels are flipped with
    probability e its mean is that of DPO over clean pairs. It can be negative.

    Args:
        beta: strength of the pull towards the reference, > 0.
        label_smoothing: probability e that a pair's label is flipped, in [0, 0.5).

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1) -> None:
        super().__init__(beta)
        check("label_smoothing", label_smoothing, 0 <= label_smoothing < 0.5, "in [0, 0.5)")
        self.label_smoothing = label_smoothing

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return robust_dpo_loss(chosen, rejected, self.beta, self.label_smoothing)


class LengthNormalizedDPO(DPO):
    """Length-normalised DPO of Tülu 3 (Lambert et al. 2024, arXiv 2411.15124).

    -log sigmoid(beta / |w| * log pi(w)/ref(w) - beta / |l| * log pi(l)/ref(l)), |y| the completion's tokens.
    Label smoothing is DPO's; the paper has none.

    Args:
        beta: strength of the pull towards the reference, > 0. It multiplies nats per token, so it is larger
            than DPO's: the paper takes 5.
        label_smoothing: assumed probability that a pair's label is flipped, in [0, 0.5).

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    def __init__(self, beta: float = 5.0, label_smoothing: float = 0.0) -> None:
        super().__init__(beta, label_smoothing)

    def scores(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        return pairs.log_ratios(per_token=True)
