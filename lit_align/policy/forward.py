"""Log-probs of the completions of a batch, by the cheapest exact way that the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from torch import nn

from lit_align.batch import Padded, PairBatch
from lit_align.policy.logps import TokenLogps, plain_logps
from lit_align.policy.sharding import outer_gathered
from lit_align.policy.shared_check import SharedRowsCheck
from lit_align.policy.shared_logps import shared_logps
from lit_align.shared_rows import SharedRows, demand_prompts


class CompletionForward:
    """Gives the log-probs of several completions of the same prompts.

    Each prompt is computed once for all its completions (`lit_align/shared_rows.py`), and the LM head runs only on
    completion tokens, in chunks (`head.py`). A model's first batch is checked against plain rows (`shared_check.py`). A
    model that fails the check gets plain rows, with one warning.
    """

    def __init__(self) -> None:
        self._checks: WeakKeyDictionary[nn.Module, SharedRowsCheck] = WeakKeyDictionary()

    def __call__(
        self,
        model: nn.Module,
        prompt: Padded,
        completions: Sequence[Padded],
        with_collisions: bool = False,
        rows: SharedRows | None = None,
        with_router_loss: bool = False,
    ) -> list[TokenLogps]:
        """The log-probs of each token, in float32.

        Args:
            model: a causal language model of transformers, or one wrapped by peft.
            prompt: [B, P], each with at least one token.
            completions: any number of [B, C_j].
            with_collisions: also fills `TokenLogps.collisions`.
            rows: the layout of all of them in one row; None lays them out.
            with_router_loss: adds the pass's router loss, see :meth:`~lit_align.policy.logps.TokenLogps.of_pass`.

        Raises:
            ValueError: a prompt is empty, so that nothing would predict the first token of its completion.
        """
        demand_prompts(prompt.sizes)
        with outer_gathered(model):  # the head's weights are read outside of the model's own forward pass
            if self._checks.setdefault(model, SharedRowsCheck()).takes(model, prompt, completions):
                return shared_logps(model, prompt, completions, with_collisions, rows, with_router_loss)
            return plain_logps(model, prompt, completions, with_collisions, with_router_loss)


def batch_logps(
    model: nn.Module,
    batch: PairBatch,
    forward: CompletionForward,
    with_target: bool = False,
    with_collisions: bool = False,
    with_router_loss: bool = False,
) -> list[TokenLogps]:
    """Log-probs of the chosen, the rejected and, on demand, the target completions of a batch, from one forward pass.

    Args:
        model: as in :class:`CompletionForward`.
        batch: B pairs.
        forward: computes the log-probs.
        with_target: also computes the rows' targets, as a third entry.
        with_collisions: also fills `TokenLogps.collisions`.
        with_router_loss: adds the pass's router loss as the last entry.

    Raises:
        ValueError: `with_target` is set and a row has no target.
    """
    completions = [batch.chosen, batch.rejected]
    if with_target:
        completions.append(_targets(batch))
    rows = batch.rows if len(completions) == len(batch.completions) else None
    options = {"with_router_loss": True} if with_router_loss else {}
    return forward(model, batch.prompt, completions, with_collisions, rows, **options)


def _targets(batch: PairBatch) -> Padded:
    if batch.target is None or not all(batch.target.sizes):
        raise ValueError(
            "The loss needs each row's own `target`, but a pair of this batch has none: add the column "
            "`target` to the data, or choose a loss whose target is the chosen completion."
        )
    return batch.target
