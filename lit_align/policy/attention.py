"""The attention of models whose prompts are shared by their completions, registered with transformers.

A pass over shared rows hands its :class:`~lit_align.shared_rows.Layout` to the model as a keyword argument, which
transformers hands down to each layer's attention function, with its scaling, sliding window, soft-capping and sinks. So
no mask is needed. Passes without a layout (sampling, plain rows) run what the model ran before. The function's name
stays set: layers are looked up by it at each call, also when they are computed again in a backward.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from lit_align.policy.internals import attention_name, may_set_attention
from lit_align.policy.span_attention import Rule, attend_span_by_span
from lit_align.policy.varlen_attention import attend_packed, takes_packed
from lit_align.shared_rows import Layout

Output = tuple[Tensor, Tensor | None]
NAMES = {"sdpa": "shared_prompt", "eager": "shared_prompt_eager"}
"""The name of the function for each attention that a model may run where it is given no layout."""
MASKS: dict[str, Callable[..., Tensor | None]] = {"sdpa": sdpa_mask, "eager": eager_mask}
CHUNKED = "chunked_attention"


@dataclass
class Pass:
    """What a pass over shared rows asked for, and what attention was given.

    Attributes:
        calls: layers that attended by the layout.
        masked: those of them that were given a mask nevertheless.
        windows: the windows that layers had.
        masked_windows: the windows of the masks that the model asked for.
        router_loss: the balancing loss of a mixture of experts, if it was asked for.
    """

    calls: int = 0
    masked: int = 0
    windows: set[int] = field(default_factory=set)
    masked_windows: set[int] = field(default_factory=set)
    router_loss: Tensor | None = None


_PASS: ContextVar[Pass | None] = ContextVar("pass", default=None)


@contextmanager
def shared_pass() -> Iterator[Pass]:
    """A forward pass over shared rows: the model gets no masks within the block."""
    record = Pass()
    token = _PASS.set(record)
    try:
        yield record
    finally:
        _PASS.reset(token)


def unfit_attention(model: nn.Module) -> str | None:
    """The reason why a model's attention cannot be exchanged; None if it can."""
    base = base_model(model)
    name = attention_name(base.config)
    if name not in (*NAMES, *NAMES.values()):
        return f'its attention is {name!r} (attn_implementation: "sdpa" or "eager" can be exchanged)'
    return None if may_set_attention(base) else "its layers attend by themselves"


def use_shared_attention(model: nn.Module) -> None:
    """Makes a model's layers attend by a layout where they are given one, from now on."""
    base = base_model(model)
    name = attention_name(base.config)
    if name in NAMES:
        base.set_attn_implementation(NAMES[name])


def base_model(model: nn.Module) -> Any:
    """The model of transformers below an adapter."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def _attention(
    plain: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Output:
    layout: Layout | None = options.pop("layout", None)
    if layout is not None:
        return _attend(module, query, key, value, mask, layout, options), None
    function: Callable[..., Output] = sdpa_attention_forward if plain == "sdpa" else _eager_of(module)
    return function(module, query, key, value, mask, **options)


@torch.compiler.disable  # it would be compiled anew for each layout
def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    layout: Layout,
    options: dict[str, Any],
) -> Tensor:
    """Attention by the layout: heads before tokens in, [1, T, heads, D] out."""
    rule = Rule(
        scaling=options.get("scaling"),
        window=options.get("sliding_window"),
        chunk=_chunk(module),
        cap=options.get("softcap"),
        sinks=options.get("s_aux"),
        dropout=options.get("dropout", 0.0),
    )
    record = _PASS.get()
    if record is not None:
        record.calls += 1
        record.masked += mask is not None
        record.windows |= {size for size in (rule.window, rule.chunk) if size}
    attend = attend_packed if takes_packed(query, value, layout, rule) else attend_span_by_span
    return attend(query, key, value, layout, rule)


def _chunk(module: Any) -> int | None:
    """Tokens of a chunk, if the layer attends only within chunks (Llama 4)."""
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    layer = getattr(module, "layer_idx", None)
    is_chunked = kinds is not None and layer is not None and layer < len(kinds) and kinds[layer] == CHUNKED
    return getattr(config, "attention_chunk_size", None) if is_chunked else None


def _eager_of(module: nn.Module) -> Callable[..., Output]:
    """The attention that a model's own file spells out."""
    files = (sys.modules[kind.__module__] for kind in type(module).__mro__)
    function: Callable[..., Output] = next(
        file.eager_attention_forward for file in files if hasattr(file, "eager_attention_forward")
    )
    return function


def _mask(plain: str, *args: Any, **kwargs: Any) -> Tensor | None:
    record = _PASS.get()
    if record is None:
        return MASKS[plain](*args, **kwargs)
    if kwargs.get("local_size"):
        record.masked_windows.add(kwargs["local_size"])
    return None


for _plain, _name in NAMES.items():
    AttentionInterface.register(_name, partial(_attention, _plain))
    AttentionMaskInterface.register(_name, partial(_mask, _plain))
