"""Log-probs of the completions of a batch, by the cheapest exact way that the model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_align.batch import Padded, PairBatch
from lit_align.policy.attention import cheaper_attention
from lit_align.policy.head import token_logps
from lit_align.policy.logps import TokenLogps, plain_logps
from lit_align.policy.precision import HALF_PRECISIONS, autocast_dtype
from lit_align.policy.shared_prompt import FLEX, attention_mask, shared_rows, takes_mask
from lit_align.sampling.modes import in_eval_mode

TOLERANCE = 1e-3
HALF_TOLERANCE = 0.1
"""Mean nats per token by which two ways to the same log-probs differ at most: float32, half precision."""


class CompletionForward:
    """Gives the log-probs of several completions of the same prompts.

    Each prompt is computed once for all its completions (`shared_prompt.py`) and the LM head runs on completion
    tokens alone, in chunks (`head.py`). Whether a model takes that is found out on its first batch, against its
    plain forward pass of one of the prompts; one that does not gets plain rows, with one warning.
    """

    def __init__(self) -> None:
        self._shares: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def __call__(
        self, model: nn.Module, prompt: Padded, completions: Sequence[Padded], with_collisions: bool = False
    ) -> list[TokenLogps]:
        """The log-probs of each token, in float32.

        Args:
            model: a causal language model of transformers, or one wrapped by peft.
            prompt: [B, P], each with at least one token.
            completions: any number of [B, C_j].
            with_collisions: also fill `TokenLogps.collisions`.

        Raises:
            ValueError: where a prompt is empty: nothing would predict the first token of its completion.
        """
        if not bool((prompt.lengths > 0).all()):
            raise ValueError("Every prompt needs at least one token, but one of the batch is empty.")
        if model not in self._shares:
            self._shares[model] = self._takes_shared_rows(model, prompt, completions)
        return (shared_logps if self._shares[model] else plain_logps)(model, prompt, completions, with_collisions)

    @torch.no_grad()
    def _takes_shared_rows(self, model: nn.Module, prompt: Padded, completions: Sequence[Padded]) -> bool:
        if not takes_mask(_config(model)):
            return _refused(model, f"attention {_config(model)._attn_implementation!r} or of an unknown kind")
        first_prompt, firsts = _first(prompt), [_first(completion) for completion in completions]
        try:
            with in_eval_mode(model):  # an adapter's dropout would make any two passes differ
                shared = torch.cat([one.logps[one.mask] for one in shared_logps(model, first_prompt, firsts)])
                plain = torch.cat([one.logps[one.mask] for one in plain_logps(model, first_prompt, firsts)])
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return _refused(model, f"it raised {type(error).__name__}: {error}")
        difference = (shared - plain).abs().mean().item()
        if not difference <= rounding(model):
            return _refused(model, f"its log-probs differ by {difference:.2g} nats a token")
        return True


def batch_logps(
    model: nn.Module,
    batch: PairBatch,
    forward: CompletionForward,
    with_target: bool = False,
    with_collisions: bool = False,
) -> list[TokenLogps]:
    """The chosen, the rejected and, on demand, the target completions of a batch, from one forward pass.

    Args:
        model: as in :class:`CompletionForward`.
        batch: B pairs.
        forward: computes them.
        with_target: also the rows' targets, as a third entry.
        with_collisions: also fill `TokenLogps.collisions`.

    Raises:
        ValueError: where targets are asked for and a row has none.
    """
    completions = [batch.chosen, batch.rejected]
    if with_target:
        completions.append(_targets(batch))
    return forward(model, batch.prompt, completions, with_collisions)


def shared_logps(
    model: nn.Module, prompt: Padded, completions: Sequence[Padded], with_collisions: bool = False
) -> list[TokenLogps]:
    """Several completions of B prompts in one row each, from one forward pass; see `shared_prompt.py`."""
    rows = shared_rows(prompt, completions)
    if _config(model)._attn_implementation == FLEX:
        rows = rows.packed()
    mask = attention_mask(rows, _config(model), _embedding(model).dtype)
    index = torch.arange(len(rows.ids), device=rows.ids.device)[:, None]
    head = model.get_output_embeddings()  # type: ignore[operator]
    with stopped_before(head) as hidden, cheaper_attention(model, rows, mask):
        model(input_ids=rows.ids, attention_mask=mask, position_ids=rows.positions, use_cache=False)
    pairs = list(zip(completions, rows.predicting, strict=True))
    gathered = torch.cat([hidden[0][index.expand_as(at)[one.mask], at[one.mask]] for one, at in pairs])
    targets = torch.cat([one.ids[one.mask] for one in completions])
    values, collisions = token_logps(gathered, targets, head, _config(model), with_collisions)
    sizes = [int(one.mask.sum()) for one in completions]
    collided = [None] * len(sizes) if collisions is None else collisions.split(sizes)
    return [
        TokenLogps.from_flat(one.mask, part, collision)
        for one, part, collision in zip(completions, values.split(sizes), collided, strict=True)
    ]


def rounding(model: nn.Module) -> float:
    """Mean nats per token that rounding explains between two ways to the same log-probs."""
    embedding = _embedding(model)
    dtype = autocast_dtype(embedding.device.type) or embedding.dtype
    return HALF_TOLERANCE if dtype in HALF_PRECISIONS else TOLERANCE


@contextmanager
def stopped_before(head: nn.Module) -> Iterator[list[Tensor]]:
    """Keeps what the LM head is given, [B, T, H], and gives it nothing to do."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        kept.append(inputs[0])
        return (inputs[0][:, :0], *inputs[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _refused(model: nn.Module, why: str) -> bool:
    rank_zero_warn(
        f"{type(model).__name__} does not take a prompt shared by its completions: {why}. Each completion gets a row "
        "of its own, which gives the same numbers and costs the prompt once for each. "
        'attn_implementation: "sdpa" or "eager" takes it with most models.'
    )
    return False


def _targets(batch: PairBatch) -> Padded:
    if batch.target is None or not bool((batch.target.lengths > 0).all()):
        raise ValueError(
            "The loss asks for each row's own `target`, but a pair of this batch has none: add the column "
            "`target` to the data, or choose a loss whose target is the chosen completion."
        )
    return batch.target


def _first(padded: Padded) -> Padded:
    length = int(padded.lengths[0])
    return Padded(padded.ids[:1, :length], padded.mask[:1, :length])


def _config(model: nn.Module) -> Any:
    return model.config


def _embedding(model: nn.Module) -> Tensor:
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    return next(embeddings.parameters())
