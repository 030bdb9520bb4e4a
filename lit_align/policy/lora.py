"""LoRA layers that take fewer passes over memory, and keep less of it for the backward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from lit_align.policy.head import has_whole_weight
from lit_align.policy.internals import use_layers
from lit_align.policy.precision import autocast_dtype


def add_in_place(config: LoraConfig, model: PreTrainedModel) -> LoraConfig:
    """Makes `config` use :class:`InPlaceLora` for the layers of `model`, plain or quantised by lit-align."""
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    if getattr(model, "is_loaded_in_4bit", False):
        use_layers(config, {**_four_bit_layers(), nn.Linear: InPlaceLoraLinear})
    elif not getattr(model, "is_quantized", False) or getattr(method, "quant_method", None) == "torchao":
        use_layers(config, {nn.Linear: InPlaceLoraLinear})
    return config


class InPlaceLora(LoraLayer):
    """W x + s B A x as in peft's layers, with the adapter's part added to the base's by one matrix product.

    peft computes B A x, scales it and adds it: three outputs of the layer's size, none of which is needed here. If
    the adapter is in float32 on a base in half precision, peft keeps a float32 copy of x for the backward of each
    layer; this one keeps x as it is, once for all layers with the same input. The device says in which dtype the
    products are (:func:`products_on`).
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._only_adapter() if not args and not kwargs else None
        if name is None:
            return cast(Tensor, super().forward(x, *args, **kwargs))  # type: ignore[misc]  # of peft's layer
        down = cast(nn.Linear, self.lora_A[name]).weight
        up = cast(nn.Linear, self.lora_B[name]).weight
        products = products_on(x.device.type, x.dtype, down.dtype)
        flat = x.reshape(-1, x.shape[-1])
        dropout = self.lora_dropout[name]
        dropped = flat if isinstance(dropout, nn.Identity) else dropout(flat.to(products.dtype))
        together = _add_low_rank(self.base_layer(flat), dropped, down, up, self.scaling[name], products)
        return together.view(*x.shape[:-1], together.shape[-1])

    def _only_adapter(self) -> str | None:
        """The single active adapter if it is a plain one; None if peft computes more than W x + s B A x."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias.get(name):
            return None
        return name if has_whole_weight(self.lora_A[name]) and has_whole_weight(self.lora_B[name]) else None


class InPlaceLoraLinear(InPlaceLora, LoraLinear):
    """An :class:`InPlaceLora` on a plain linear layer."""


@cache
def _four_bit_layers() -> dict[type[nn.Module], type[nn.Module]]:
    """The layers of bitsandbytes and their adapters; a function, because the import takes seconds."""
    from bitsandbytes.nn import Linear4bit
    from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

    return {Linear4bit: type("InPlaceLoraLinear4bit", (InPlaceLora, LoraLinear4bit), {})}


@dataclass(frozen=True)
class Products:
    """How an adapter's products are computed.

    Args:
        dtype: the dtype of the products. Weights, their gradients and the optimizer's state keep their own.
        rows: rows that are cast together, where casts are needed; None casts all.
    """

    dtype: torch.dtype
    rows: int | None


def products_on(device: str, base: torch.dtype, adapter: torch.dtype) -> Products:
    """How a type of device computes the products of an adapter.

    On a CPU those of a float32 adapter are in float32, some rows at a time, which then are in the processor's cache.
    On other devices they are in the dtype of the base, as under autocast, since products in half precision are many
    times as fast there and long ones the most.

    Args:
        device: its type.
        base: the dtype of the layer's input and output.
        adapter: the dtype of the adapter's weights.
    """
    if device == "cpu":
        return Products(autocast_dtype(device) or adapter, _ROWS)
    return Products(autocast_dtype(device) or base, None)


def _add_low_rank(base: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float, products: Products) -> Tensor:
    """base + s B A x, rounded to the dtype of `base`, whose memory it may take.

    Args:
        base: [N, out].
        x: [N, in].
        down: A, [r, in].
        up: B, [out, r].
        scale: s.
        products: how they are computed.
    """
    dtype = products.dtype
    if base.dtype == x.dtype == dtype:  # no casts needed
        return base.addmm_(x @ down.to(dtype).t(), up.to(dtype).t(), alpha=scale)
    if torch.compiler.is_compiling():  # compiled code casts without copies, and a loop would fix the number of rows
        low = x.to(dtype) @ down.to(dtype).t()
        return base.to(dtype).addmm(low, up.to(dtype).t(), alpha=scale).to(base.dtype)
    return cast(Tensor, _CastAndAddLowRank.apply(base, x, down, up, scale, products))


_ROWS = 1024
"""Rows that a CPU casts together."""


class _CastAndAddLowRank(torch.autograd.Function):
    """Computes :func:`_add_low_rank` in the memory of `base`, casting some rows at a time.

    The backward casts x again, so that no copy of it is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float, products: Products
    ) -> Tensor:
        dtype = products.dtype
        low = x.new_empty(len(x), len(down), dtype=dtype)
        down_exact = down.to(dtype)
        up_exact = up.to(dtype)
        for rows in _parts(x, products.rows):
            low[rows] = x[rows].to(dtype) @ down_exact.t()
            base[rows] = base[rows].to(dtype, copy=True).addmm_(low[rows], up_exact.t(), alpha=scale)
        ctx.scale = scale
        ctx.rows = products.rows
        ctx.mark_dirty(base)
        ctx.save_for_backward(x, low, down, up)
        return base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, low, down, up = ctx.saved_tensors
        down_exact = down.to(low.dtype)
        up_exact = up.to(low.dtype)
        down_gradient = torch.zeros_like(down_exact)
        up_gradient = torch.zeros_like(up_exact)
        x_gradient = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        for rows in _parts(x, ctx.rows):
            exact = gradient[rows].to(low.dtype)
            low_gradient = (exact @ up_exact).mul_(ctx.scale)
            up_gradient.addmm_(exact.t(), low[rows], alpha=ctx.scale)
            down_gradient.addmm_(low_gradient.t(), x[rows].to(low.dtype))
            if x_gradient is not None:
                x_gradient[rows] = low_gradient @ down_exact
        return gradient, x_gradient, down_gradient, up_gradient, None, None


def _parts(x: Tensor, rows: int | None) -> list[slice]:
    """Slices of rows that are cast together. In a plan of memory there is one, since each takes as much."""
    rows = rows or max(len(x), 1)
    planned = min(len(x), rows) if getattr(x, "is_planned", x.is_meta) else len(x)
    return [slice(start, start + rows) for start in range(0, planned, rows)]
