"""IPO: a squared distance to a fixed margin."""

from __future__ import annotations

from torch import Tensor

from lit_align.losses.base import LogRatioLoss
from lit_align.losses.types import PairLogps


def ipo_loss(chosen_ratios: Tensor, rejected_ratios: Tensor, beta: float = 0.1) -> Tensor:
    """IPO's losses [B]; see :class:`IPO`.

    Args:
        chosen_ratios: [B] log [pi / ref] of the chosen completions, in nats.
        rejected_ratios: [B] log [pi / ref] of the rejected completions, in nats.
        beta: > 0.

    Example:
        >>> import torch
        >>> ipo_loss(torch.tensor([2.0]), torch.zeros(1), beta=0.5)
        tensor([1.])
    """
    return (chosen_ratios - rejected_ratios - 1 / (2 * beta)).square()  # Eq. 17 of arXiv 2310.12036


class IPO(LogRatioLoss):
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    (log pi(w)/ref(w) - log pi(l)/ref(l) - 1 / (2 beta))^2.

    Args:
        beta: strength of the pull towards the reference, > 0 (tau in the paper); 1 / (2 beta) is the margin
            to reach, in nats, or in nats per token with `length_normalize`.
        length_normalize: divide each log-ratio by its completion's length. The equation does not; other
            implementations do, and report that the paper's experiments did.

    Raises:
        ValueError: if beta is not positive.
    """

    def __init__(self, beta: float = 0.1, length_normalize: bool = False) -> None:
        super().__init__(beta)
        self.length_normalize = length_normalize

    def scores(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        return pairs.log_ratios(per_token=self.length_normalize)

    def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return ipo_loss(chosen, rejected, self.beta)
