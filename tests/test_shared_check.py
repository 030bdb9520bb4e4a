"""Which rows may share a prompt: models whose attention has windows of its own, half precision, experts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    StableLmConfig,
)
from transformers.models.gpt_neo import GPTNeoConfig

from lit_align.batch import lay_out_padded
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, attention, plain_logps, shared_logps
from lit_align.policy import shared_check as check_module
from lit_align.policy.exact_pass import computed_in
from lit_align.policy.load import load_model
from lit_align.policy.shared_check import SharedRowsCheck
from lit_align.policy.shared_logps import hidden_states
from tests.helpers.row_models import DECODER, MIXTURES, NARROW, make_model, rows, values
from tests.helpers.tiny import save_tiny_model

WIDE = rows(100, 4, seed=1), [rows(100, 3, seed=2), rows(100, 9, seed=3)]


def refused(model: nn.Module, why: str) -> None:
    """Each completion gets a row of its own, and the reason is said once."""
    forward = CompletionForward()
    with pytest.warns(UserWarning, match=why):
        found = values(forward(model, *WIDE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(values(forward(model, *WIDE)), found)
    assert torch.equal(found, values(plain_logps(model, *WIDE)))


def test_layers_that_attend_by_themselves_are_found() -> None:
    config = GPTNeoConfig(
        vocab_size=320, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=512, window_size=256,
        attention_types=[[["global", "local"], 1]],
    )  # fmt: skip
    refused(make_model(config), "GPTNeo.*its layers attend by themselves")


def test_layers_that_are_not_given_the_layout_are_found() -> None:
    refused(make_model(StableLmConfig(**DECODER), None), "StableLm.*0 of 2 are given the layout")


def test_a_window_that_only_the_mask_shows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(MistralConfig(**DECODER, sliding_window=200), None)
    attend = attention._attend

    def without_window(module: nn.Module, *arguments: Any) -> Tensor:
        *tensors, options = arguments
        return attend(module, *tensors, {**options, "sliding_window": None})

    monkeypatch.setattr(attention, "_attend", without_window)
    refused(model, "window of 200 tokens that only its mask shows")  # though the checked row is shorter


def test_another_attention_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(LlamaConfig(**DECODER), "flex_attention")
    with pytest.warns(UserWarning, match=r"its attention is 'flex_attention' \(attn_implementation"):
        assert not SharedRowsCheck().takes(model, *NARROW)


class Louder(nn.Module):
    """Wraps a model whose logits are changed behind its head, as no config says."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.get_output_embeddings = model.get_output_embeddings
        self.get_input_embeddings = model.get_input_embeddings
        self.get_base_model = lambda: model

    def forward(self, **kwargs: Any) -> Any:
        output = self.model(**kwargs)
        output.logits = output.logits * 1.5
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_whose_output_is_changed_is_found(dtype: torch.dtype) -> None:
    model: nn.Module = make_model(LlamaConfig(**DECODER), None)
    refused(Louder(model.to(dtype)), "its head's output is changed")


def test_a_difference_in_a_single_token_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_wrong(*arguments: Any) -> Any:
        hidden, record = hidden_states(*arguments)
        hidden[-2] *= 1.01
        return hidden, record

    monkeypatch.setattr(check_module, "hidden_states", one_wrong)
    with pytest.warns(UserWarning, match="its layers give other states, worth 0"):
        assert not SharedRowsCheck().takes(make_model(LlamaConfig(**DECODER)), *NARROW)


def test_the_check_is_short_whatever_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(LlamaConfig(**DECODER, max_position_embeddings=100_000), None)
    seen: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, ids, __: seen.append(ids[0].numel()))
    assert SharedRowsCheck().takes(model, rows(3000, 5), [rows(2000, 1), rows(2, 900)])
    assert seen == [64 + 32 + 2, 2 * (64 + 32)]


def test_the_head_is_never_copied(tmp_path: Path) -> None:
    model = policy(save_tiny_model(tmp_path / "model"), None, torch.float32)
    head = model.get_output_embeddings()
    seen: set[torch.dtype] = set()
    head.register_forward_hook(lambda layer, *_: seen.add(layer.weight.dtype))
    assert SharedRowsCheck().takes(model, *NARROW)
    assert seen == {torch.bfloat16}


# -- experts


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_share_a_prompt_with_router_logits_in_their_config(name: str) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(MIXTURES[name]).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = values(CompletionForward()(model, *WIDE))
    model.config.output_router_logits = False
    with torch.no_grad():
        torch.testing.assert_close(found, values(plain_logps(model, *WIDE)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("config", "ways"), [(MIXTURES["mixtral"], 2), (LlamaConfig(**DECODER), 1)])
def test_where_experts_are_chosen_float64_decides(
    config: PretrainedConfig, ways: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two experts may be as good as equal, and rounding alone chooses: then a token differs in float32."""
    model = make_model(config)
    largest = check_module._Both.largest_difference
    exact: list[float] = []

    def rounded(both: Any) -> float:
        exact.append(largest(both))
        return exact[-1] if both.shared.dtype == torch.float64 else 1.0

    monkeypatch.setattr(check_module._Both, "largest_difference", rounded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert SharedRowsCheck().takes(model, *NARROW) == (ways == 2)
    assert len(exact) == ways and exact[0] < 1e-3 and max(exact[1:], default=0.0) < 1e-5


# -- the pass in float32


def policy(folder: Path, quantization: str | None, adapters: torch.dtype) -> nn.Module:
    spec = PolicySpec(str(folder), dtype="bfloat16", quantization=quantization, lora=LoraSpec(r=4))  # type: ignore[arg-type]
    model = load_model(spec).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (0.1 * torch.randn(parameter.shape)).to(adapters)
    return model


def states(model: nn.Module) -> Tensor:
    layout = lay_out_padded(NARROW[0], NARROW[1])
    ids = torch.cat([padded.ids.flatten() for padded in (NARROW[0], *NARROW[1])])[layout.source]
    return hidden_states(model, ids, layout)[0]


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_pass_in_float32_of_half_precision(tmp_path: Path, quantization: str | None, adapters: torch.dtype) -> None:
    model = policy(save_tiny_model(tmp_path / "model"), quantization, adapters)
    before = {name: (id(p), p.dtype) for name, p in model.named_parameters()}
    computed: set[torch.dtype] = set()
    head = model.get_output_embeddings()
    handles = [
        module.register_forward_hook(lambda _, __, out: computed.add(out.dtype), always_call=True)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    with (
        torch.no_grad(),
        computed_in(torch.float32, model, head),
        torch.autocast("cpu", enabled=False),
    ):
        found = states(model)
        # 4-bit layers give back their input's dtype
    assert computed == {torch.float32}
    for handle in handles:
        handle.remove()
    assert {name: (id(p), p.dtype) for name, p in model.named_parameters()} == before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    if quantization is None:
        with torch.no_grad():
            torch.testing.assert_close(found, states(model.float()), atol=1e-5, rtol=0)


def test_an_error_within_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    model = policy(save_tiny_model(tmp_path / "model"), None, torch.float32)
    before = {name: id(p) for name, p in model.named_parameters()}
    model.base_model.model.model.layers[1].mlp.down_proj.forward = None
    with torch.no_grad(), pytest.raises(TypeError), computed_in(torch.float32, model, model.get_output_embeddings()):
        model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_the_check_changes_nothing_of_a_half_precision_policy_and_its_gradients(tmp_path: Path) -> None:
    model = policy(save_tiny_model(tmp_path / "model"), None, torch.float32)
    wanted = shared_logps(model, *NARROW)
    sum(one.sum().sum() for one in wanted).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = CompletionForward()(model, *NARROW)
    assert torch.equal(values(found), values(wanted))
    sum(one.sum().sum() for one in found).backward()
    assert gradients and all(
        torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters() if p.grad is not None
    )
