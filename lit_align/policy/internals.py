"""What transformers and peft keep under private names and lit-align needs, each name once, with the reason.

`tests/test_private_names.py` says which of them an upgrade has taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from peft import LoraConfig


def attention_name(config: Any) -> str:
    """The attention that a model runs; no public name says what transformers chose if the user named none."""
    return str(config._attn_implementation)


def may_set_attention(model: Any) -> bool:
    """Whether a model's layers look up their attention function by its name."""
    return bool(model._can_set_attn_implementation())


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """A model's repeated layers, whose classes transformers names only for splitting a model over devices."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def checkpoint_function(layer: nn.Module) -> Any:
    """What runs a layer and saves only its inputs; None before gradient checkpointing is switched on."""
    return getattr(layer, "_gradient_checkpointing_func", None)


def wrap_checkpoint_functions(model: nn.Module, wrap: Callable[[Any], Any]) -> None:
    """Wraps what runs each checkpointed layer, which gives more freedom than the arguments of the public switch."""
    for module in model.modules():
        if checkpoint_function(module) is not None:
            layer: Any = module
            layer._gradient_checkpointing_func = wrap(layer._gradient_checkpointing_func)


@contextmanager
def experts_one_by_one(config: Any) -> Iterator[None]:
    """Computes experts one by one within the block, which works in any dtype; transformers sets it at loading only."""
    text = config.get_text_config()
    usual = getattr(text, "_experts_implementation", None)
    text._experts_implementation = "eager"
    try:
        yield
    finally:
        text._experts_implementation = usual


def use_layers(config: LoraConfig, layers: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Tells peft the adapter's layer for each kind of base layer; peft offers no other way yet."""
    config._register_custom_module(dict(layers))
