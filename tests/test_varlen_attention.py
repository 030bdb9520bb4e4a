"""Attention on a GPU, as far as a CPU can tell: a loop stands for torch's kernel, which runs on a GPU alone."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from lit_align.policy import attention, varlen_attention
from lit_align.policy.span_attention import Rule, attend_span_by_span
from lit_align.policy.varlen_attention import attend_packed, takes_packed
from lit_align.shared_rows import lay_out
from tests.helpers.row_models import CONFIGS, assert_same, make_model

LAYOUT = lay_out([5, 1, 7], [[3, 2, 4], [6, 0, 1]], [7, 4, 6]).layout
TOKENS = sum(span.size for span in LAYOUT.spans)


def loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """As `varlen_attn`: the queries of a sequence are the last of its keys, and see `window_size[0]` keys before."""
    assert window_size[1] == 0 and cu_q.dtype == cu_k.dtype == torch.int32
    outputs = []
    for q, q_end, k, k_end in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        rows, columns = int(q_end - q), int(k_end - k)
        assert rows <= max_q and columns <= max_k
        distance = torch.arange(columns - rows, columns)[:, None] - torch.arange(columns)
        seen = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] < 0))
        queries, keys, values = (part.transpose(0, 1)[None] for part in (query[q:q_end], key[k:k_end], value[k:k_end]))
        output = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def without_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """As `varlen_attn` of torch 2.11."""
    assert query.shape[1] == key.shape[1]
    return loop(query, key, value, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.fixture(params=[loop, without_groups])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_attention, "_varlen", lambda: request.param)


@pytest.mark.parametrize("rule", [Rule(), Rule(window=3, scaling=0.7)], ids=["full", "window"])
def test_gathered_keys_give_the_numbers_and_gradients_of_spans(kernel: None, rule: Rule) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, TOKENS, 8) for heads in (4, 2, 2)]
    query, key, value = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    weights = torch.randn(1, TOKENS, 4, 8, generator=generator)
    found = []
    for attend in (attend_span_by_span, attend_packed):
        output = attend(query, key, value, LAYOUT, rule)
        found.append([output, *torch.autograd.grad((output * weights).sum(), [query, key, value])])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2_window", "gemma3_window"])
def test_models_give_the_log_probs_of_plain_rows(kernel: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "takes_packed", lambda *_: True)
    assert_same(make_model(CONFIGS[name], None))


def test_torchs_kernel_takes_these_arguments() -> None:
    names = set(inspect.signature(loop).parameters) - {"cu_q", "cu_k"} | {"cu_seq_q", "cu_seq_k"}
    known = inspect.signature(varlen_attn).parameters
    assert names <= set(known) and list(known)[:7] == [
        "query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"
    ]  # fmt: skip
    assert varlen_attention._varlen() is varlen_attn


def test_it_is_for_gpus_alone() -> None:
    half = torch.zeros(1, 4, TOKENS, 8, dtype=torch.bfloat16)
    assert not takes_packed(half, half, LAYOUT, Rule())
