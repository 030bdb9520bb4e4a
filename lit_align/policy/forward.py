"""Log-probs of the completions of a batch, by the cheapest exact way that the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from torch import nn

from lit_align.batch import Padded, PairBatch
from lit_align.policy.logps import TokenLogps, plain_logps
from lit_align.policy.precision import HALF_PRECISIONS, dtype_of_products
from lit_align.policy.sharding import outer_gathered
from lit_align.policy.shared_check import TOLERANCE, SharedRowsCheck
from lit_align.policy.shared_logps import shared_logps

HALF_TOLERANCE = 0.1
"""Mean nats per token by which two ways to the same log-probs differ at most in half precision."""


class CompletionForward:
    """Gives the log-probs of several completions of the same prompts.

    Each prompt is computed once for all its completions (`shared_prompt.py`), and the LM head runs only on completion
    tokens, in chunks (`head.py`). The first batch of a model, and any with wider rows, is checked against plain rows
    (`shared_check.py`). A model that fails the check gets plain rows, with one warning.
    """

    def __init__(self) -> None:
        self._checks: WeakKeyDictionary[nn.Module, SharedRowsCheck] = WeakKeyDictionary()

    def __call__(
        self, model: nn.Module, prompt: Padded, completions: Sequence[Padded], with_collisions: bool = False
    ) -> list[TokenLogps]:
        """The log-probs of each token, in float32.

        Args:
            model: a causal language model of transformers, or one wrapped by peft.
            prompt: [B, P], each with at least one token.
            completions: any number of [B, C_j].
            with_collisions: also fills `TokenLogps.collisions`.

        Raises:
            ValueError: a prompt is empty, so that nothing would predict the first token of its completion.
        """
        if not bool((prompt.lengths > 0).all()):
            raise ValueError("Every prompt needs at least one token, but one of the batch is empty.")
        with outer_gathered(model):  # the head's weights are read outside of the model's own forward pass
            shares = self._checks.setdefault(model, SharedRowsCheck()).takes(model, prompt, completions)
            return (shared_logps if shares else plain_logps)(model, prompt, completions, with_collisions)


def batch_logps(
    model: nn.Module,
    batch: PairBatch,
    forward: CompletionForward,
    with_target: bool = False,
    with_collisions: bool = False,
) -> list[TokenLogps]:
    """Log-probs of the chosen, the rejected and, on demand, the target completions of a batch, from one forward pass.

    Args:
        model: as in :class:`CompletionForward`.
        batch: B pairs.
        forward: computes the log-probs.
        with_target: also computes the rows' targets, as a third entry.
        with_collisions: also fills `TokenLogps.collisions`.

    Raises:
        ValueError: `with_target` is set and a row has no target.
    """
    completions = [batch.chosen, batch.rejected]
    if with_target:
        completions.append(_targets(batch))
    return forward(model, batch.prompt, completions, with_collisions)


def rounding(model: nn.Module) -> float:
    """The mean difference, in nats per token, that rounding explains between two ways to the same log-probs."""
    return HALF_TOLERANCE if dtype_of_products(model) in HALF_PRECISIONS else TOLERANCE


def _targets(batch: PairBatch) -> Padded:
    if batch.target is None or not bool((batch.target.lengths > 0).all()):
        raise ValueError(
            "The loss needs each row's own `target`, but a pair of this batch has none: add the column "
            "`target` to the data, or choose a loss whose target is the chosen completion."
        )
    return batch.target
