"""The dtype that products are computed in, which autocast may set apart from the weights' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from lit_align.console import note

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Autocast's dtype on a type of device, as under a Trainer's `*-mixed` precision; None without autocast."""
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else None


def dtype_of_products(model: nn.Module) -> torch.dtype:
    """The dtype of the model's products: autocast's, or that of its weights."""
    weight = embedding_weight(model)
    return autocast_dtype(weight.device.type) or weight.dtype


@rank_zero_only
def say_float32_products(device: str, dtype: torch.dtype) -> None:
    """Prints how a GPU computes float32 products; nothing for other devices and dtypes.

    Args:
        device: its type.
        dtype: the dtype of the products.
    """
    if device != "cuda" or dtype != torch.float32:
        return
    if torch.get_float32_matmul_precision() == "highest":
        note(
            "Products are in float32, without TF32. The environment variable TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 makes "
            "them several times as fast, with 10 bits of the mantissa, and policy.dtype: bfloat16 with 7."
        )
    else:
        note(
            "Products are in TF32: float32 with 10 of its 23 bits of the mantissa. "
            'torch.set_float32_matmul_precision("highest") switches it off.'
        )


@rank_zero_only
def say_slow_bfloat16(device: str, dtype: torch.dtype, capabilities: Mapping[str, Any] | None = None) -> None:
    """Prints that float32 is faster, where a CPU has no products in bfloat16; nothing for others.

    Args:
        device: its type.
        dtype: the dtype of the products.
        capabilities: of the CPU, by torch's names; None asks torch, of which older versions do not know.
    """
    if device != "cpu" or dtype != torch.bfloat16:
        return
    known: Mapping[str, Any] = capabilities or getattr(torch.cpu, "get_capabilities", dict)()
    if known.get("architecture") == "x86_64" and not any(known.get(name) for name in _BFLOAT16_PRODUCTS):
        note(
            "This CPU has no products in bfloat16, which are slow then: --model.policy.dtype float32 is faster, and "
            "takes twice the memory. `lit-align doctor --only speed/products` tells by how much."
        )


_BFLOAT16_PRODUCTS = ("avx512_bf16", "amx_bf16")


def embedding_weight(model: nn.Module) -> Tensor:
    """The weight of the model's input embeddings, whose dtype and device stand for all weights'."""
    embeddings: nn.Module = cast(Any, model).get_input_embeddings()
    return next(embeddings.parameters())
