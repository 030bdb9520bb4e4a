"""The dtype that products are computed in, which autocast may set apart from the weights' own."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Autocast's dtype on a type of device, as under a Trainer's `*-mixed` precision; None without autocast."""
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else None


def dtype_of_products(model: nn.Module) -> torch.dtype:
    """The dtype of the model's products: autocast's, or that of its weights."""
    weight = embedding_weight(model)
    return autocast_dtype(weight.device.type) or weight.dtype


def embedding_weight(model: nn.Module) -> Tensor:
    """The weight of the model's input embeddings, whose dtype and device stand for all weights'."""
    embeddings: nn.Module = cast(Any, model).get_input_embeddings()
    return next(embeddings.parameters())
