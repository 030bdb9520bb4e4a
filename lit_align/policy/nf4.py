"""Weights in 4 bits (NF4), by bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

_REPACKING = "support_avx512bf16_for_cpu"


def nf4_settings(compute_dtype: Any) -> BitsAndBytesConfig:
    """NF4 with quantised scales (arXiv:2305.14314), as `quantization_config` of `from_pretrained`.

    Args:
        compute_dtype: dtype of the products with the unpacked weights; None is float32.

    Raises:
        ModuleNotFoundError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            'quantization: "nf4" needs the package `bitsandbytes`: pip install bitsandbytes'
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype or torch.float32,
    )


def keep_trainable_on_cpu(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in place at the first forward in eval mode.

    On CPUs with avx512_bf16 the repacked form has no autograd: after one generation no adapter would get a gradient
    any more. It also cannot hold narrow layers.
    """
    for module in model.modules():
        if hasattr(module, _REPACKING):
            setattr(module, _REPACKING, False)
