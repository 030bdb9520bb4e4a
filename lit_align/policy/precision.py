"""What products are computed in, where that is not the dtype of the weights."""

from __future__ import annotations

import torch

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Of products on a type of device where autocast decides, as under a Trainer's `*-mixed` precision; else None."""
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else None
