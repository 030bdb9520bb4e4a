"""Tells which layers and weights of a model its adapters reach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lit_align.console import note
from lit_align.policy.quantized import is_packed


def layer_names(model: nn.Module) -> list[str]:
    """Names of the layers that are one matrix, such as `q_proj`, for `lora.target_modules`."""
    matrices = (name for name, parameter in model.named_parameters() if parameter.ndim == 2)
    return sorted({name.split(".")[-2] for name in matrices if name.endswith(".weight")})


def demand_targets(targets: str | Sequence[str], adapted: Any, layers: Sequence[str]) -> None:
    """Refuses a target that no adapter was made for; peft itself does so only if none of them is a layer's name.

    Args:
        targets: the configured `target_modules`; a string is a pattern or a kind of layers.
        adapted: peft's model with the adapters.
        layers: names of the layers of its base.

    Raises:
        ValueError: a target is not the name of a layer.
    """
    (config,) = adapted.peft_config.values()
    # peft replaces some names of older mixtures of experts by others: those are not checked.
    names = [] if isinstance(targets, str) else [name for name in targets if name in config.target_modules]
    reached = [f".{name}" for name in adapted.base_model.targeted_module_names]
    unknown = [name for name in names if not any(layer.endswith(f".{name}") for layer in reached)]
    if unknown:
        raise ValueError(
            f"expected lora.target_modules to name layers of the model, got {', '.join(map(repr, unknown))}. "
            f"Its layers: {', '.join(layers)}."
        )


def demand_saved_modules(names: Sequence[str] | None, model: Any) -> None:
    """Refuses layers that cannot be trained whole beside adapters.

    Args:
        names: the configured `modules_to_save`.
        model: the base.

    Raises:
        ValueError: one is no layer of the model, is quantised, or shares its weight with another.
    """
    modules = dict(model.named_modules())
    embedding: Any = model.get_input_embeddings()
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    for name in names or ():
        found = [module for path, module in modules.items() if path.split(".")[-1] == name]
        if not found:
            raise ValueError(
                f"expected lora.modules_to_save to name layers of the model, got {name!r}. "
                f"Its layers: {', '.join(layer_names(model))}."
            )
        if any(is_packed(weight) for module in found for weight in module.parameters()):
            raise ValueError(f"lora.modules_to_save: {name} is quantised, and cannot be trained whole.")
        if tied and any(module in (head, embedding) for module in found):
            raise ValueError(
                f"lora.modules_to_save: {name} shares its weight with another layer (tie_word_embeddings), which would "
                "keep the old one: name it in lora.target_modules instead."
            )


def say_unreached(model: nn.Module) -> None:
    """Prints the share of weights in parameters that stack a layer's experts, which `target_modules` cannot name."""
    unreached = dict(_experts_without_adapter(model))
    if unreached:
        weights = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
        share = sum(unreached.values()) / weights
        targets = sorted({re.split(r"\.\d+\.", name)[-1].replace("base_layer.", "") for name in unreached})
        rank_zero_only(note)(
            f"LoRA: {100 * share:.0f} % of the weights get no adapter, since all experts of a layer are one parameter. "
            f"With adapters: lora.target_parameters: [{', '.join(targets)}]"
        )


def _experts_without_adapter(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Names and sizes of the parameters that stack a matrix for each expert and have no adapter."""
    wrappers: list[Any] = [
        module for module in model.modules() if hasattr(module, "parameter_name") and hasattr(module, "lora_A")
    ]
    adapted = {id(wrapper.get_param()) for wrapper in wrappers}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and id(parameter) not in adapted and not isinstance(module, _ConvNd):
                yield f"{prefix}.{name}", parameter.numel()
