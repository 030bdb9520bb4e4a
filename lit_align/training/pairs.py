"""Puts the log-probs of completions together into the input of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lit_align.batch import PairBatch
from lit_align.losses import PairLogps, PairTokens
from lit_align.policy.logps import TokenLogps


@dataclass(frozen=True)
class ReferencePairLogps:
    """The reference's log-probs of a batch, float32, in nats.

    Args:
        chosen: [B] sums.
        rejected: [B] sums.
        chosen_tokens: [B, C] of single tokens, 0 at padding; None if only the sums are known.
        rejected_tokens: [B, R] of single tokens, 0 at padding; None if only the sums are known.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor | None = None
    rejected_tokens: Tensor | None = None

    @classmethod
    def of(cls, chosen: TokenLogps, rejected: TokenLogps) -> ReferencePairLogps:
        """Takes the log-probs of a forward pass of the reference."""
        return cls(chosen.sum(), rejected.sum(), chosen.logps, rejected.logps)

    @classmethod
    def stored_in(cls, batch: PairBatch, with_tokens: bool) -> ReferencePairLogps | None:
        """Takes the log-probs that were computed ahead and came with the batch; None if some are missing."""
        chosen = batch.reference_chosen_logps
        rejected = batch.reference_rejected_logps
        tokens = batch.reference_chosen_token_logps, batch.reference_rejected_token_logps
        if chosen is None or rejected is None or (with_tokens and None in tokens):
            return None
        return cls(chosen, rejected, *tokens)


def make_pair_logps(
    batch: PairBatch, completions: Sequence[TokenLogps], reference: ReferencePairLogps | None, with_tokens: bool
) -> PairLogps:
    """Makes the input of a loss.

    Args:
        batch: B pairs.
        completions: the policy's log-probs of the chosen completions, the rejected ones and, for some losses, the
            targets.
        reference: the reference's log-probs; None if the loss needs none.
        with_tokens: also includes the log-probs of single tokens.
    """
    chosen, rejected, *target = completions
    return PairLogps(
        policy_chosen_logps=chosen.sum(),
        policy_rejected_logps=rejected.sum(),
        reference_chosen_logps=reference.chosen if reference else None,
        reference_rejected_logps=reference.rejected if reference else None,
        chosen_lengths=chosen.lengths,
        rejected_lengths=rejected.lengths,
        policy_target_logps=target[0].sum() if target else None,
        target_lengths=target[0].lengths if target else None,
        margin=batch.margin,
        tokens=_tokens(chosen, rejected, reference) if with_tokens else None,
        policy_chosen_collisions=_total(chosen.collisions),
        policy_rejected_collisions=_total(rejected.collisions),
    )


def _tokens(chosen: TokenLogps, rejected: TokenLogps, reference: ReferencePairLogps | None) -> PairTokens:
    return PairTokens(
        policy_chosen_logps=chosen.logps,
        policy_rejected_logps=rejected.logps,
        chosen_mask=chosen.mask,
        rejected_mask=rejected.mask,
        reference_chosen_logps=_match_width(reference.chosen_tokens, chosen) if reference else None,
        reference_rejected_logps=_match_width(reference.rejected_tokens, rejected) if reference else None,
    )


def _match_width(tokens: Tensor | None, policy: TokenLogps) -> Tensor | None:
    """Brings the reference's token log-probs to the width of the policy's, cutting or adding padding."""
    if tokens is None or tokens.shape == policy.logps.shape:
        return tokens
    widened = tokens.new_zeros(policy.logps.shape)
    width = min(tokens.shape[1], widened.shape[1])
    widened[:, :width] = tokens[:, :width]
    return widened


def _total(collisions: Tensor | None) -> Tensor | None:
    return None if collisions is None else collisions.sum(-1)
