"""The interface between the forward pass and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class PairTokens:
    """Log-probabilities of single completion tokens of B pairs: float32, in nats, 0 at padding.

    The chosen and the rejected completions may be padded to different widths C.

    Args:
        policy_chosen_logps: [B, C] of the chosen completions under the policy; summed over C they are those of
            :class:`PairLogps`.
        policy_rejected_logps: [B, C] of the rejected completions under the policy.
        chosen_mask: [B, C] bool, True for real tokens, which come first, and False for padding.
        rejected_mask: [B, C] the same for the rejected completions.
        reference_chosen_logps: [B, C] of the chosen completions under the reference; None if the loss needs none.
        reference_rejected_logps: [B, C] of the rejected completions under the reference; None if the loss needs none.
    """

    policy_chosen_logps: Tensor
    policy_rejected_logps: Tensor
    chosen_mask: Tensor
    rejected_mask: Tensor
    reference_chosen_logps: Tensor | None = None
    reference_rejected_logps: Tensor | None = None


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of B preference pairs: float32 sums over the completion tokens, in nats.

    Args:
        policy_chosen_logps: [B] log pi(chosen | prompt) under the policy.
        policy_rejected_logps: [B] log pi(rejected | prompt) under the policy.
        reference_chosen_logps: [B] of the chosen completions under the reference; None if the loss needs none.
        reference_rejected_logps: [B] of the rejected completions under the reference; None if the loss needs none.
        chosen_lengths: [B] int64, tokens of the chosen completions.
        rejected_lengths: [B] int64, tokens of the rejected completions.
        policy_target_logps: [B] of each row's `target`, which a regulariser keeps likely, under the policy.
        target_lengths: [B] int64, tokens of the targets.
        margin: [B] the judge's score of the chosen minus that of the rejected completion; NaN if there is none.
        tokens: the same log-probs token by token, for a loss with `needs_token_logps`.
        policy_chosen_collisions: [B] sum over the tokens of the chosen completions of log sum_v pi(v | ...)^2, the
            log-probability that two draws of the policy agree; detached. For a loss with `needs_collisions`.
        policy_rejected_collisions: [B] the same sum over the tokens of the rejected completions.
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
    tokens: PairTokens | None = None
    policy_chosen_collisions: Tensor | None = None
    policy_rejected_collisions: Tensor | None = None

    def references(self) -> tuple[Tensor, Tensor]:
        """Returns the reference's log-probs of the chosen and the rejected completions, each [B], detached.

        Raises:
            ValueError: if the pairs came without them.
        """
        if self.reference_chosen_logps is None or self.reference_rejected_logps is None:
            raise ValueError(
                "This loss compares with a reference model, but the pairs came without reference log-probs. "
                "A loss that needs them says so with the class attribute `needs_reference = True`."
            )
        return self.reference_chosen_logps.detach(), self.reference_rejected_logps.detach()

    def log_ratios(self, per_token: bool = False) -> tuple[Tensor, Tensor]:
        """Computes log [pi(y|x) / ref(y|x)] of the chosen and the rejected completions, each [B].

        Args:
            per_token: divide each by its completion's length.

        Raises:
            ValueError: if the pairs came without the reference's log-probs.
        """
        reference_chosen, reference_rejected = self.references()
        chosen = self.policy_chosen_logps - reference_chosen
        rejected = self.policy_rejected_logps - reference_rejected
        if per_token:
            return chosen / self.chosen_lengths, rejected / self.rejected_lengths
        return chosen, rejected

    def policy_means(self) -> tuple[Tensor, Tensor]:
        """Computes log pi(y|x) / |y| of the chosen and the rejected completions, each [B]."""
        return self.policy_chosen_logps / self.chosen_lengths, self.policy_rejected_logps / self.rejected_lengths


@dataclass(frozen=True)
class LossOutput:
    """The output of a loss: one value per pair, never reduced.

    Args:
        losses: [B], with gradients.
        chosen_rewards: [B] the implicit reward of the chosen completion, detached.
        rejected_rewards: [B] the implicit reward of the rejected completion, detached.
        metrics: further values to log, by name, each [B] and detached.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class PreferenceLoss(nn.Module, ABC):
    """A loss over preference pairs. Subclass it in a file of your own and name it by `class_path`.

    Attributes of the class or the instance say what the forward pass must compute for it:

    - `needs_reference`: reference log-probs (default True);
    - `needs_token_logps`: log-probs of single tokens, `PairLogps.tokens` (default False);
    - `needs_target`: log-probs of each row's own `target` (default False);
    - `needs_collisions`: `PairLogps.policy_chosen_collisions` and
      `policy_rejected_collisions` (default False).

    One attribute says what holds for its values:

    - `per_pair`: a pair's loss does not depend on the other pairs of the micro-batch (default True). If it is
      False, another micro-batch size gives another loss, even with the same number of pairs per step.

    Buffers and parameters of a loss are its state and are saved in the checkpoint.

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
    needs_collisions: bool = False
    per_pair: bool = True

    @abstractmethod
    def forward(self, pairs: PairLogps) -> LossOutput:
        """Computes one loss and two rewards per pair, each [B]."""

    def __call__(self, pairs: PairLogps) -> LossOutput:
        return super().__call__(pairs)

    def reference_changed(self) -> None:
        """Resets state that depends on the reference. Called after each refresh of the reference."""
