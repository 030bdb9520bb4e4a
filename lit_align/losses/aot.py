"""AOT: preference in distribution, by sorting a micro-batch."""

from __future__ import annotations

from torch import Tensor

from lit_align.losses.base import LogRatioLoss, check, smoothed_sigmoid_loss
from lit_align.losses.types import LossOutput, PairLogps


def aot_loss(better: Tensor, worse: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """AOT's losses [B], low if `better` dominates `worse` in the first order; see :class:`AOT`.

    Args:
        better: [B] values to push up.
        worse: [B] values to push down.
        beta: > 0.
        label_smoothing: in [0, 0.5).

    Returns:
        [B], in the order of `better`: its i-th smallest value is compared with the i-th smallest of `worse`.

    Example:
        >>> import torch
        >>> aot_loss(torch.tensor([5.0, 1.0]), torch.tensor([1.0, 5.0]))
        tensor([0.6931, 0.6931])
    """
    ranks = better.argsort(stable=True).argsort()
    partners = worse.sort().values[ranks]
    return smoothed_sigmoid_loss(beta * (better - partners), label_smoothing)


class _SortedLoss(LogRatioLoss):
    """Base of both forms of AOT: a loss over the sorted values of a micro-batch."""

    per_pair = False

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(beta)
        check("label_smoothing", label_smoothing, 0 <= label_smoothing < 0.5, "in [0, 0.5)")
        self.label_smoothing = label_smoothing

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return aot_loss(chosen, rejected, self.beta, self.label_smoothing)


class AOT(_SortedLoss):
    """Alignment via optimal transport, paired (Melnyk et al. 2024, arXiv 2406.05882).

    The margins log pi(w)/pi(l) of the policy should dominate those of the reference in the first order: with both
    sorted over the micro-batch, -log sigmoid(beta * (i-th smallest of the policy - i-th smallest of the reference)).

    The sort sees one micro-batch of one device: gradient accumulation and more devices do not widen it, and with
    a batch size of 1 this is DPO. Use micro-batches as large as memory allows.

    Args:
        beta: scale of the margins, > 0.
        label_smoothing: assumed probability that a pair's label is flipped, in [0, 0.5); the paper has none.

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """

    def forward(self, pairs: PairLogps) -> LossOutput:
        reference_chosen, reference_rejected = pairs.references()
        losses = self.compare(
            pairs.policy_chosen_logps - pairs.policy_rejected_logps, reference_chosen - reference_rejected
        )
        return self.output(losses, *pairs.log_ratios())


class AOTUnpaired(_SortedLoss):
    """Alignment via optimal transport, unpaired (Melnyk et al. 2024, arXiv 2406.05882).

    The log-ratios log pi/ref of the chosen completions should dominate those of the rejected ones in the first
    order: with both sorted over the micro-batch, -log sigmoid(beta * (i-th smallest chosen - i-th smallest rejected)).
    It does not matter which rejected completion belongs to which chosen one.

    The sort sees one micro-batch of one device, as in :class:`AOT`; with a batch size of 1 this is DPO.

    Args:
        beta: scale of the log-ratios, > 0.
        label_smoothing: assumed probability that a pair's label is flipped, in [0, 0.5); the paper has none.

    Raises:
        ValueError: if a hyper-parameter is out of its range.
    """
