"""What of a model its adapters reach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lit_align.console import note


def layer_names(model: nn.Module) -> list[str]:
    """What the layers that are one matrix are called, such as `q_proj`: what `lora.target_modules` may name."""
    matrices = (name for name, parameter in model.named_parameters() if parameter.ndim == 2)
    return sorted({name.split(".")[-2] for name in matrices if name.endswith(".weight")})


def demand_targets(targets: str | Sequence[str], adapted: Any, layers: Sequence[str]) -> None:
    """Refuses a name that no adapter came of; peft speaks up only where none of the names is a layer's.

    Args:
        targets: as asked for; a text is a pattern or a kind of layers.
        adapted: the model with its adapters, of peft.
        layers: what the layers of its base are called.

    Raises:
        ValueError: where there is one.
    """
    (config,) = adapted.peft_config.values()
    # Some names of older mixtures of experts peft puts others in place of.
    asked = [] if isinstance(targets, str) else [name for name in targets if name in config.target_modules]
    reached = [f".{name}" for name in adapted.base_model.targeted_module_names]
    unknown = [name for name in asked if not any(layer.endswith(f".{name}") for layer in reached)]
    if unknown:
        raise ValueError(
            f"expected lora.target_modules to name layers of the model, got {', '.join(map(repr, unknown))}. "
            f"Its layers: {', '.join(layers)}."
        )


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
