"""The contract between the forward pass and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of B preference pairs: float32 sums over the completion tokens, in nats.

    Args:
        policy_chosen_logps: [B] log pi(chosen | prompt) under the policy.
        policy_rejected_logps: [B] the same of the rejected completions.
        reference_chosen_logps: [B] under the reference; None where the loss needs no reference.
        reference_rejected_logps: [B] likewise.
        chosen_lengths: [B] int64, completion tokens in each chosen sum.
        rejected_lengths: [B] int64, likewise.
        policy_target_logps: [B] under the policy, of a row's own regulariser target.
        target_lengths: [B] int64, likewise.
        margin: [B] chosen minus rejected score of the judge; NaN where unknown.
    """

    policy_chosen_logps: Tensor
    policy_rejected_logps: Tensor
    reference_chosen_logps: Tensor | None
    reference_rejected_logps: Tensor | None
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    policy_target_logps: Tensor | None = None
    target_lengths: Tensor | None = None
    margin: Tensor | None = None

    def references(self) -> tuple[Tensor, Tensor]:
        """The reference's log-probs of the chosen and the rejected completions, each [B].

        Raises:
            ValueError: where they were not computed.
        """
        if self.reference_chosen_logps is None or self.reference_rejected_logps is None:
            raise ValueError(
                "This loss compares with a reference model, but the pairs came without reference log-probs. "
                "A loss that needs them says so with the class attribute `needs_reference = True`."
            )
        return self.reference_chosen_logps, self.reference_rejected_logps


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns: one value per pair, never reduced.

    Args:
        losses: [B], with gradients.
        chosen_rewards: [B] the implicit reward of the chosen completion, detached.
        rejected_rewards: [B] the same of the rejected one, detached.
        metrics: more values to log, by name, each [B] and detached.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class PreferenceLoss(nn.Module, ABC):
    """A loss over preference pairs. Subclass it in a file of your own and name it by `class_path`.

    What the forward pass must compute for it, as attributes of the class or of an instance:

    - `needs_reference`: reference log-probs (default True);
    - `needs_token_logps`: log-probs of single tokens (default False);
    - `needs_target`: log-probs of each row's own `target` (default False).

    Example:
        >>> import torch
        >>> class Margin(PreferenceLoss):
        ...     needs_reference = False
        ...     def forward(self, pairs: PairLogps) -> LossOutput:
        ...         chosen, rejected = pairs.policy_chosen_logps, pairs.policy_rejected_logps
        ...         return LossOutput(rejected - chosen, chosen.detach(), rejected.detach())
        >>> pairs = PairLogps(torch.tensor([-1.0]), torch.tensor([-3.0]), None, None, torch.ones(1), torch.ones(1))
        >>> Margin()(pairs).losses
        tensor([-2.])
    """

    needs_reference: bool = True
    needs_token_logps: bool = False
    needs_target: bool = False

    @abstractmethod
    def forward(self, pairs: PairLogps) -> LossOutput:
        """Computes one loss and two rewards per pair, each [B]."""

    def __call__(self, pairs: PairLogps) -> LossOutput:
        return super().__call__(pairs)
