"""Which share of a model its adapters reach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lit_align.console import note


def say_unreached(model: nn.Module) -> None:
    """Says which share of the weights are experts in one parameter a layer, which `target_modules` cannot name."""
    unreached = dict(_experts_without_adapter(model))
    if unreached:
        weights = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
        share = sum(unreached.values()) / weights
        targets = sorted({re.split(r"\.\d+\.", name)[-1].replace("base_layer.", "") for name in unreached})
        rank_zero_only(note)(
            f"LoRA: {100 * share:.0f} % of the weights get no adapter, for all experts of a layer are one parameter. "
            f"With adapters: lora.target_parameters: [{', '.join(targets)}]"
        )


def _experts_without_adapter(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Names and sizes of the parameters that stack a matrix for each expert and have no adapter."""
    wrappers: list[Any] = [one for one in model.modules() if hasattr(one, "parameter_name") and hasattr(one, "lora_A")]
    adapted = {id(wrapper.get_param()) for wrapper in wrappers}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and id(parameter) not in adapted and not isinstance(module, _ConvNd):
                yield f"{prefix}.{name}", parameter.numel()
