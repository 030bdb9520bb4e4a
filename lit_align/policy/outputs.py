"""The logits of a model: its head, and arguments that make a forward pass compute nothing else."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn


def logits_only(config: Any) -> dict[str, bool]:
    """The arguments of a forward pass that switch off further outputs which a model's config may switch on.

    With `output_router_logits: true` a mixture of experts computes its balancing loss in every pass. For that it would
    need a padding mask, not an attention mask, and a preference loss does not use it.
    """
    return {"output_router_logits": False} if getattr(config, "output_router_logits", False) else {}


def output_head(model: nn.Module) -> nn.Module:
    """The layer that makes logits of hidden states; an adapter's model hands the question on to its base."""
    return cast(nn.Module, cast(Any, model).get_output_embeddings())


def as_input(head: nn.Module, states: Tensor) -> Tensor:
    """Hidden states in the dtype of the head's weights, unless those are quantised."""
    dtypes = (parameter.dtype for parameter in head.parameters() if parameter.is_floating_point())
    return states.to(next(dtypes, states.dtype))
