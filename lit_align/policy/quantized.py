"""Frozen weights in 4 or 8 bits, by bitsandbytes and torchao."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.policy.nf4 import keep_trainable_on_cpu, nf4_settings

if TYPE_CHECKING:
    from transformers import TorchAoConfig

BITS = {"nf4": 4, "int8": 8, "fp8": 8}
"""Bits a weight, by the name of the quantisation."""


def quantization_settings(name: str, compute_dtype: torch.dtype | None, whole: Sequence[str] = ()) -> Any:
    """The `quantization_config` of `from_pretrained`.

    Args:
        name: "nf4", "int8" or "fp8".
        compute_dtype: dtype of the products; None is float32.
        whole: names of layers that stay as they are; without any, the output layer does.

    Raises:
        ModuleNotFoundError: the package that does it is not installed.
    """
    if name != "nf4":
        return _torchao_settings(name, whole)
    settings = nf4_settings(compute_dtype)
    if whole:
        settings.llm_int8_skip_modules = list(whole)
    return settings


def _torchao_settings(name: str, whole: Sequence[str]) -> TorchAoConfig:
    """Weights of 8 bits with a scale for each row (int8) or each matrix (fp8); activations stay as they are.

    bitsandbytes' LLM.int8 would round the activations, too, by the largest of a whole batch: a row's log-probs would
    depend on the rows beside it.
    """
    if find_spec("torchao") is None:
        raise ModuleNotFoundError(
            f'quantization: "{name}" needs the package `torchao`: pip install "lit-align[torchao]"'
        )
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    kind: Any = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[name]
    return TorchAoConfig(kind(), modules_to_not_convert=list(whole) or None)


def make_trainable(model: nn.Module) -> None:
    """Makes gradients pass through the quantised layers of `model` to what is below them, at no cost in memory."""
    keep_trainable_on_cpu(model)
    for module in model.modules():
        if isinstance(module, nn.Linear) and _is_of_torchao(module.weight):
            module.forward = MethodType(_unpacked_product, module)  # type: ignore[method-assign]


def is_packed(weight: Tensor) -> bool:
    """Whether a weight cannot be trained because its values are in 4 or 8 bits."""
    return not weight.is_floating_point() or _is_of_torchao(weight)


def _is_of_torchao(weight: Tensor) -> bool:
    return hasattr(weight, "tensor_data_names")  # its dtype is that of the unpacked values


def _unpacked_product(layer: nn.Linear, x: Tensor) -> Tensor:
    product: Tensor = _UnpackedProduct.apply(x, layer.weight, layer.bias)
    return product


class _UnpackedProduct(torch.autograd.Function):
    """x W' + b, with W unpacked for each product. torchao's own keeps the unpacked W of each layer for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.dequantize().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0] @ ctx.weight.dequantize().to(upstream[0].dtype), None, None
