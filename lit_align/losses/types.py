"""The contract between the forward pass and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class PairTokens:
    """Log-probabilities of single completion tokens of B pairs: float32, in nats, 0 at padding.

    The chosen and the rejected completions may be padded to different widths C.

    Args:
        policy_chosen_logps: [B, C] under the policy; their sum over C is the one of :class:`PairLogps`.
        policy_rejected_logps: [B, C] likewise.
        chosen_mask: [B, C] bool, True where a token is real; real tokens come first.
        rejected_mask: [B, C] likewise.
        reference_chosen_logps: [B, C] under the reference; None where the loss needs no reference.
        reference_rejected_logps: [B, C] likewise.
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
        policy_rejected_logps: [B] the same of the rejected completions.
        reference_chosen_logps: [B] under the reference; None where the loss needs no reference.
        reference_rejected_logps: [B] likewise.
        chosen_lengths: [B] int64, completion tokens in each chosen sum.
        rejected_lengths: [B] int64, likewise.
        policy_target_logps: [B] under the policy, of a row's own regulariser target.
        target_lengths: [B] int64, likewise.
        margin: [B] chosen minus rejected score of the judge; NaN where unknown.
        tokens: the same log-probs token by token, for a loss with `needs_token_logps`.
        policy_chosen_collisions: [B] sum over the completion tokens of log sum_v pi(v | ...)^2, the
            log-probability that two draws of the policy agree; detached. For a loss with `needs_collisions`.
        policy_rejected_collisions: [B] likewise.
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
        """The reference's log-probs of the chosen and the rejected completions, each [B], detached.

        Raises:
            ValueError: where they were not computed.
        """
        if self.reference_chosen_logps is None or self.reference_rejected_logps is None:
            raise ValueError(
                "This loss compares with a reference model, but the pairs came without reference log-probs. "
                "A loss that needs them says so with the class attribute `needs_reference = True`."
            )
        return self.reference_chosen_logps.detach(), self.reference_rejected_logps.detach()

    def log_ratios(self, per_token: bool = False) -> tuple[Tensor, Tensor]:
        """log [pi(y|x) / ref(y|x)] of the chosen and the rejected completions, each [B].

        Args:
            per_token: divide each by its completion's length.

        Raises:
            ValueError: where the reference's log-probs were not computed.
        """
        reference_chosen, reference_rejected = self.references()
        chosen = self.policy_chosen_logps - reference_chosen
        rejected = self.policy_rejected_logps - reference_rejected
        if per_token:
            return chosen / self.chosen_lengths, rejected / self.rejected_lengths
        return chosen, rejected

    def policy_means(self) -> tuple[Tensor, Tensor]:
        """log pi(y|x) / |y| of the chosen and the rejected completions, each [B]."""
        return self.policy_chosen_logps / self.chosen_lengths, self.policy_rejected_logps / self.rejected_lengths


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
    - `needs_token_logps`: log-probs of single tokens, `PairLogps.tokens` (default False);
    - `needs_target`: log-probs of each row's own `target` (default False);
    - `needs_collisions`: `PairLogps.policy_chosen_collisions` and its twin (default False).

    What the loss promises:

    - `per_pair`: a pair's loss does not depend on the other pairs of the micro-batch (default True). Where
      it is False, another micro-batch size gives another loss, whatever the accumulation.

    Buffers and parameters of a loss are its state: they belong in the checkpoint.

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
        """Forgets what was learnt about the old reference. Called after the reference was refreshed."""
