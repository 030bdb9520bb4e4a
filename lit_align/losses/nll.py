"""The negative log-likelihood of the chosen completion: a loss of its own, and a term of others."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lit_align.losses.base import check
from lit_align.losses.types import LossOutput, PairLogps, PreferenceLoss

Target = Literal["chosen", "row"]
Normalize = Literal["completion", "sum", "batch"]


def nll_loss(logps: Tensor, lengths: Tensor, normalize: Normalize = "completion") -> Tensor:
    """-log pi(y|x) of each completion, [B]; see :class:`NLL`.

    Args:
        logps: [B] sums over tokens, in nats.
        lengths: [B] tokens.
        normalize: the divisor of each sum, see :class:`NLL`.

    Example:
        >>> import torch
        >>> nll_loss(torch.tensor([-4.0, -3.0]), torch.tensor([4, 1]))
        tensor([1., 3.])
        >>> nll_loss(torch.tensor([-4.0, -3.0]), torch.tensor([4, 1]), normalize="batch")
        tensor([1.6000, 1.2000])
    """
    if normalize == "sum":
        return -logps
    if normalize == "completion":
        return -logps / lengths
    return -logps * (len(logps) / lengths.sum())


def target_logps(pairs: PairLogps, from_row: bool) -> tuple[Tensor, Tensor]:
    """Returns log-probs and lengths, each [B], of the chosen completions, or with `from_row` of the rows' targets.

    Raises:
        ValueError: if `from_row` is set and the rows have no targets.
    """
    if not from_row:
        return pairs.policy_chosen_logps, pairs.chosen_lengths
    if pairs.policy_target_logps is None or pairs.target_lengths is None:
        raise ValueError(
            'A loss with target="row" keeps each row\'s `target` likely, but the pairs came without one: '
            'add the column `target` to the data, or set target: "chosen".'
        )
    return pairs.policy_target_logps, pairs.target_lengths


def check_normalize(name: str, value: str) -> None:
    """Raises a ValueError unless `value` is one of :data:`Normalize`."""
    check(name, value, value in ("completion", "sum", "batch"), '"completion", "sum" or "batch"')


class NLL(PreferenceLoss):
    """Negative log-likelihood of the chosen completion: the term that RPO and others add to a preference loss.

    The rewards are the policy's log-probs. By itself it is supervised fine-tuning on the chosen completions; to add
    it to another loss use :class:`WeightedSum`.

    Args:
        normalize: `completion` divides each sum by its own length (Pang et al. 2024, arXiv 2404.19733);
            `sum` does not divide; `batch` averages over all tokens of the micro-batch, so that long
            completions count more and a pair's loss depends on the other pairs.
        target: the text that is kept likely: the `chosen` completion, or for `row` the `target` of each row.

    Raises:
        ValueError: if an argument is not one of its choices.
    """

    needs_reference = False

    def __init__(self, normalize: Normalize = "completion", target: Target = "chosen") -> None:
        super().__init__()
        check_normalize("normalize", normalize)
        check("target", target, target in ("chosen", "row"), '"chosen" or "row"')
        self.normalize: Normalize = normalize
        self.needs_target = target == "row"
        self.per_pair = normalize != "batch"

    def forward(self, pairs: PairLogps) -> LossOutput:
        losses = nll_loss(*target_logps(pairs, self.needs_target), self.normalize)
        return LossOutput(losses, pairs.policy_chosen_logps.detach(), pairs.policy_rejected_logps.detach())
