"""The logits of a model: its head, and arguments that make a forward pass compute nothing else."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn


def router_loss_weight(config: Any) -> float:
    """The weight of a mixture's balancing loss in training, as the model's own loss has it by its config; 0 if none."""
    text = config.get_text_config()
    is_on = getattr(config, "output_router_logits", False) or getattr(text, "output_router_logits", False)
    return float(getattr(text, "router_aux_loss_coef", None) or 0.0) if is_on else 0.0


def outputs_of(config: Any, with_router_loss: bool = False) -> dict[str, bool]:
    """The arguments of a forward pass that switch off further outputs which a model's config may switch on.

    Args:
        config: the model's. With `output_router_logits: true` a mixture computes its balancing loss in every pass.
        with_router_loss: whether that loss is wanted, if the config switches it on.
    """
    is_on = getattr(config, "output_router_logits", False)
    return {"output_router_logits": with_router_loss} if is_on else {}


def output_head(model: nn.Module) -> nn.Module:
    """The layer that makes logits of hidden states; an adapter's model hands the question on to its base."""
    return cast(nn.Module, cast(Any, model).get_output_embeddings())


def as_input(head: nn.Module, states: Tensor) -> Tensor:
    """Hidden states in the dtype of the head's weights, unless those are quantised."""
    dtypes = (parameter.dtype for parameter in head.parameters() if parameter.is_floating_point())
    return states.to(next(dtypes, states.dtype))
