"""LoRA layers that take fewer passes over memory."""

from __future__ import annotations

from typing import Any, cast

from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_align.policy.head import has_whole_weight


def add_in_place(config: LoraConfig, model: PreTrainedModel) -> LoraConfig:
    """Makes the adapters of `config` on the plain linear layers of `model` :class:`InPlaceLoraLinear`."""
    if not getattr(model, "is_quantized", False):
        config._register_custom_module({nn.Linear: InPlaceLoraLinear})
    return config


class InPlaceLoraLinear(LoraLinear):
    """peft's LoRA layer, W x + s B A x, that adds the adapter's part to the base's in one matrix product.

    peft computes B A x, scales it and adds it: three outputs of the layer's size, of which this one needs none.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._only_adapter() if not args and not kwargs else None
        if name is None:
            return super().forward(x, *args, **kwargs)
        flat = x.reshape(-1, x.shape[-1])
        base = self.base_layer(flat)
        down, up = cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name])
        low = down(self.lora_dropout[name](self._cast_input_dtype(flat, down.weight.dtype)))
        weight = up.weight.t().to(low.dtype)  # another dtype than low's under autocast
        together = base.to(low.dtype).addmm_(low, weight, alpha=self.scaling[name])
        return together.to(base.dtype).view(*x.shape[:-1], -1)

    def _only_adapter(self) -> str | None:
        """The one active adapter, where it is a plain one; None where peft has more to do than W x + s B A x."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias.get(name):
            return None
        return name if has_whole_weight(self.lora_B[name]) else None
