"""What a model is asked for beside its logits: nothing."""

from __future__ import annotations

from typing import Any


def logits_alone(config: Any) -> dict[str, bool]:
    """The arguments of a forward pass that leave out what a config may ask for by itself.

    With `output_router_logits: true` a mixture of experts computes its balancing loss in every pass, for which it
    would need a padding mask in place of one that says who sees whom. A preference loss does not have it as a term.
    """
    return {"output_router_logits": False} if getattr(config, "output_router_logits", False) else {}
