"""Builds the policy on the meta device, from its config."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lit_align.policy.adapter import saved_config
from lit_align.policy.load import check_spec, fresh_adapter, keep_activations, load_config
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.spec import PolicySpec

_BLOCK = 64
_NESTED = 256
"""bitsandbytes' NF4: weights that share a scale, and scales that share a scale of their own."""
_PRECISIONS = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


def empty_policy(spec: PolicySpec, precision: str) -> nn.Module:
    """Builds the model of `load_model(spec)` on the meta device. No weights are downloaded.

    Args:
        spec: the policy; a GGUF file is converted, once.
        precision: the Trainer's precision; "true" half precision casts the weights.

    Raises:
        ValueError: the settings contradict each other.
    """
    check_spec(spec)
    attention = spec.attn_implementation
    with quiet_libraries(), torch.device("meta"):
        config = load_config(spec)
        dtype = getattr(config, "dtype", None) if spec.dtype == "auto" else getattr(torch, spec.dtype)
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32,
            attn_implementation=attention if attention in (None, "eager") else "sdpa",  # keeps as many bytes as flash
            trust_remote_code=spec.trust_remote_code,
        )
        if spec.quantization is not None:
            _quantize(model, spec.quantization)
        keep_activations(spec, model)
        adapted: nn.Module = model  # all of its weights are trained, unless there is an adapter
        if spec.adapter is not None:
            from peft import get_peft_model

            adapted = get_peft_model(model, saved_config(spec.adapter, model))
        elif spec.lora is not None:
            adapted = fresh_adapter(spec.lora, model)
    return adapted.train().to(_PRECISIONS.get(precision))


def count_frozen(model: nn.Module) -> int:
    """The number of parameters that are not trained; quantised ones count as many as they unpack to."""
    return sum(getattr(p, "unpacked_size", p.numel()) for p in model.parameters() if not p.requires_grad)


def nf4_bytes(weights: int) -> int:
    """Bytes of weights in NF4 with double quantisation: 4 bits a weight, 8 for each 64, 32 for each 64 x 256."""
    scales = -(-weights // _BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // _NESTED)


def packed_bytes(quantization: str, rows: int, columns: int) -> int:
    """Bytes of a quantised matrix: in 8 bits with a float32 scale for each row (int8), or for all of it (fp8)."""
    if quantization == "nf4":
        return nf4_bytes(rows * columns)
    return rows * columns + 4 * (rows if quantization == "int8" else 1)


def _quantize(model: Any, quantization: str) -> None:
    """Puts quantised layers in the place of all linear ones but the output layer, as transformers does."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child is not head:
                setattr(module, name, _QuantizedLinear(child, quantization))


class _QuantizedLinear(nn.Linear):
    """A linear layer whose weight takes the bytes of a quantised one.

    As in training, the weight is unpacked for each product and not kept for the backward.
    """

    def __init__(self, plain: nn.Linear, quantization: str) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None, dtype=plain.weight.dtype)
        self.compute_dtype = plain.weight.dtype
        size = packed_bytes(quantization, plain.out_features, plain.in_features)
        packed: Any = nn.Parameter(torch.empty(size, 1, dtype=torch.uint8), requires_grad=False)
        packed.unpacked_size = plain.weight.numel()
        self.weight = packed

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = _UnpackedProduct.apply(input.to(self.compute_dtype), self.out_features)
        return (product if self.bias is None else product + self.bias).to(input.dtype)


class _UnpackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, out_features: int) -> Tensor:
        ctx.shape = out_features, input.shape[-1]
        return F.linear(input, input.new_empty(ctx.shape))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] @ upstream[0].new_empty(ctx.shape), None
