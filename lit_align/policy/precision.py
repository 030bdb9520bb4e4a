"""What products are computed in, where that is not the dtype of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Of products on a type of device where autocast decides, as under a Trainer's `*-mixed` precision; else None."""
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else None


def dtype_of_products(model: nn.Module) -> torch.dtype:
    """Of the model's products: autocast's, or that of its weights."""
    weight = embedding_weight(model)
    return autocast_dtype(weight.device.type) or weight.dtype


def embedding_weight(model: nn.Module) -> Tensor:
    """Of the model's input embeddings: its dtype and device are those of the weights."""
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    return next(embeddings.parameters())
