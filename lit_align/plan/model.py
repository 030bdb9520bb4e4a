"""The policy on the meta device: its shapes and dtypes, no values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function
from transformers import AutoModelForCausalLM, PretrainedConfig

from lit_align.policy.adapter import saved_config
from lit_align.policy.head import BLOCKS
from lit_align.policy.load import check_spec, fresh_adapter, keep_activations, load_config
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.shared_prompt import SharedRows
from lit_align.policy.spec import PolicySpec

_BLOCK, _NESTED = 64, 256
"""bitsandbytes' NF4: weights that share a scale, and scales that share a scale of their own."""


def config_of(spec: PolicySpec) -> PretrainedConfig:
    """The model's config as training loads it. Of a hub id no weights are fetched; a GGUF file is converted, once."""
    with quiet_libraries():
        config: PretrainedConfig = load_config(spec)
    return config


def empty_policy(spec: PolicySpec, config: PretrainedConfig, trainable: bool = True, on_gpu: bool = False) -> nn.Module:
    """What `spec.load_model()` gives, on the meta device.

    Args:
        spec: the policy.
        config: its model's, from :func:`config_of`.
        trainable: False for the frozen copy that a reference is.
        on_gpu: whether what is kept in the host's memory is elsewhere.

    Raises:
        ValueError: where the settings contradict each other.
    """
    check_spec(spec)
    attention = spec.attn_implementation
    with quiet_libraries(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=policy_dtype(spec, config),
            attn_implementation=attention if attention in (None, "eager") else "sdpa",  # what keeps the same bytes
            trust_remote_code=spec.trust_remote_code,
        )
        if spec.quantization == "nf4":
            _quantize(model)
        keep_activations(spec, model, _elsewhere if on_gpu else nullcontext)
        adapted = _adapted(spec, model)
    return adapted.train() if trainable else adapted.requires_grad_(False).eval()


def policy_dtype(spec: PolicySpec, config: PretrainedConfig) -> torch.dtype:
    """Of the weights that are not quantised."""
    dtype: Any = config.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def dtype_of(model: Any) -> torch.dtype:
    """Of a model's embeddings, and so of its hidden states."""
    weight: Tensor = model.get_input_embeddings().weight
    return weight.dtype


def blank_rows(rows: int, width: int) -> SharedRows:
    """Rows of tokens without values."""
    ids, positions, segments = (torch.empty(rows, width, dtype=torch.long, device="meta") for _ in range(3))
    return SharedRows(ids, positions, segments, [])


def with_segments(rows: SharedRows, *tokens: int) -> SharedRows:
    """The same rows that say how many tokens their prompt and each completion have."""
    row = torch.arange(len(tokens)).repeat_interleave(torch.tensor(tokens))
    return replace(rows, segments=row.expand(len(rows.ids), -1))


def _adapted(spec: PolicySpec, model: Any) -> nn.Module:
    if spec.adapter is not None:
        from peft import get_peft_model

        return get_peft_model(model, saved_config(spec.adapter, model))
    if spec.lora is not None:
        return fresh_adapter(spec.lora, model)
    model.requires_grad_(True)
    return cast(nn.Module, model)


def _quantize(model: Any) -> None:
    """Puts 4-bit layers in the place of all linear ones but the output layer, as transformers does."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child is not head:
                setattr(module, name, _Nf4Linear(child))


class _Nf4Linear(nn.Linear):
    """A linear layer whose weight takes the bytes of NF4 with double quantisation (arXiv 2305.14314).

    As with bitsandbytes, the weight is unpacked for each product and not kept for the backward.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None, dtype=plain.weight.dtype)
        self.unpacked = plain.weight.dtype
        size = nf4_bytes(plain.weight.numel())
        self.weight = nn.Parameter(torch.empty(size, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = _Nf4Product.apply(input.to(self.unpacked), self.out_features, self.unpacked)
        return product if self.bias is None else product + self.bias


class _Nf4Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, out_features: int, dtype: torch.dtype) -> Tensor:
        ctx.out_features, ctx.in_features = out_features, input.shape[-1]
        return F.linear(input, input.new_empty(out_features, input.shape[-1], dtype=dtype))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0] @ upstream[0].new_empty(ctx.out_features, ctx.in_features), None, None


def nf4_bytes(weights: int) -> int:
    """Bytes of that many weights in NF4 with double quantisation: 4 bits each, 8 of 64, 32 of 64 x 256."""
    scales = -(-weights // _BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // _NESTED)


def _elsewhere() -> AbstractContextManager[None]:
    """Keeps the tensors saved inside the block nowhere, and makes them anew when they are wanted."""

    def gone(tensor: Tensor) -> Callable[[], Tensor]:
        return partial(torch.empty, tensor.shape, dtype=tensor.dtype, device=tensor.device)

    return torch.autograd.graph.saved_tensors_hooks(gone, lambda made_anew: made_anew())


@contextmanager
def kernels_of(on_gpu: bool) -> Iterator[None]:
    """Lets the meta device keep what a device's kernels keep: without this it takes torch's unfused attention."""
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused
    BLOCKS["meta"] = BLOCKS["cuda" if on_gpu else "cpu"]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before
        del BLOCKS["meta"]


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if has_torch_function((query, key, value)):  # what replaces attention on a CPU comes first
        rest: dict[str, Any] = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        every = (query, key, value)
        return handle_torch_function(_fused, every, *every, enable_gqa=enable_gqa, **rest)
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # as torch does, in each layer anew
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = attention(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return output
