"""Which rows may share a prompt: models whose attention has windows of its own, half precision, experts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MoshiConfig,
    PretrainedConfig,
)
from transformers.models.gpt_neo import GPTNeoConfig

from lit_align.batch import Padded
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, plain_logps, shared_logps
from lit_align.policy import shared_check as check_module
from lit_align.policy.exact_pass import computed_in
from lit_align.policy.load import load_model
from lit_align.policy.shared_check import NARROWEST, SharedRowsCheck, class_before, class_of, lengthened
from tests.helpers.row_models import DECODER, MIXTURES, NARROW, make_model, rows, values
from tests.helpers.tiny import save_tiny_model


def gpt_neo(window: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Every second layer sees the last `window` columns, whatever its mask says."""
    config = GPTNeoConfig(
        vocab_size=320, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=512, window_size=window,
        attention_types=[[["global", "local"], 1]],
    )  # fmt: skip
    model: nn.Module = make_model(config)
    return model.to(dtype)


WIDE = rows(100, 4, seed=1), [rows(100, 3, seed=2), rows(100, 9, seed=3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_that_no_mask_shows_is_found_when_rows_get_wider(dtype: torch.dtype) -> None:
    model, forward = gpt_neo(256, dtype), CompletionForward()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = values(forward(model, *NARROW))
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="GPTNeo.* in rows of more than 216 tokens: its log-probs diff"),
    ):
        assert torch.equal(values(forward(model, *WIDE)), values(plain_logps(model, *WIDE)))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert torch.equal(values(forward(model, *WIDE)), values(plain_logps(model, *WIDE)))
        assert torch.equal(values(forward(model, *NARROW)), shared), "what came before does not matter"


def test_the_verdict_on_a_row_does_not_depend_on_the_rows_before() -> None:
    model = gpt_neo(256)
    ways = []
    for order in ((NARROW, WIDE), (WIDE, NARROW)):
        check = SharedRowsCheck()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ways.append({id(batch): check.takes(model, *batch) for batch in order})
    assert ways[0] == ways[1] == {id(NARROW): True, id(WIDE): False}


def test_no_row_is_wider_than_one_that_was_checked_and_checks_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    monkeypatch.setattr(check_module, "_difference", lambda _, parts: checked.append(sum(map(len, parts))) or 0.0)
    model, check = make_model(LlamaConfig(**DECODER, max_position_embeddings=100_000)), SharedRowsCheck()
    for width in range(3, 5000):
        assert check.takes(model, rows(1), [rows(width - 2), rows(1)])
        assert width <= max(checked)
    assert len(checked) == 12


def test_classes_of_widths() -> None:
    assert [class_of(width) for width in (1, NARROWEST, NARROWEST + 1, 96, 97)] == [64, 64, 96, 96, 144]
    assert [class_before(width) for width in (96, 144)] == [64, 96]


def test_a_row_is_lengthened_in_proportion_and_within_the_models_positions() -> None:
    parts = [torch.arange(3), torch.arange(10, 12), torch.arange(20, 21), torch.arange(0)]
    assert [part.tolist() for part in lengthened(parts, 12, None)] == [
        [0, 1, 2, 0, 1, 2],
        [10, 11, 10, 11],
        [20, 20],
        [],
    ]
    assert [len(part) for part in lengthened(parts, 600, 27)] == [15, 10, 5, 0]
    assert [len(part) for part in lengthened(parts, 600, 3)] == [3, 2, 1, 0]


def test_an_error_in_a_single_token_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_wrong(model: nn.Module, prompt: Padded, completions: list[Padded]) -> list:
        found = shared_logps(model, prompt, completions)
        found[0].logps[0, -1] += 0.01
        return found

    monkeypatch.setattr(check_module, "shared_logps", one_wrong)
    with pytest.warns(UserWarning, match="differ by up to 0.01 nats a token"):
        assert not SharedRowsCheck().takes(make_model(LlamaConfig(**DECODER)), *WIDE)


def test_moshis_window_counts_columns() -> None:
    small = {key: value for key, value in DECODER.items() if key != "pad_token_id"}
    config = MoshiConfig(**small, head_dim=8, ffn_dim=64, sliding_window=80, max_position_embeddings=512)
    model = make_model(config, "sdpa")
    check = SharedRowsCheck()
    assert check.takes(model, *NARROW)
    with pytest.warns(UserWarning, match="Moshi.* in rows of more than"):
        assert not check.takes(model, *WIDE)


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
    parts = [torch.arange(3, 80), torch.arange(3, 40), torch.arange(50, 90)]
    difference_in = check_module._difference_in
    exact: list[float] = []

    def rounded(dtype: torch.dtype, *arguments: Any) -> float:
        exact.append(difference_in(dtype, *arguments))
        return exact[-1] if dtype == torch.float64 else 1.0

    monkeypatch.setattr(check_module, "_difference_in", rounded)
    with torch.no_grad():
        assert check_module._difference(model, parts) == min([1.0, *exact[1:]])
    assert len(exact) == ways and exact[0] < 1e-3 and max(exact[1:], default=0.0) < 1e-5


# -- the pass in float32


def policy(folder: Path, quantization: str | None, adapters: torch.dtype) -> nn.Module:
    spec = PolicySpec(str(folder), dtype="bfloat16", quantization=quantization, lora=LoraSpec(r=4))  # type: ignore[arg-type]
    model = load_model(spec).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (0.1 * torch.randn(parameter.shape)).to(adapters)
    return model


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_pass_in_float32_of_half_precision(tmp_path: Path, quantization: str | None, adapters: torch.dtype) -> None:
    model = policy(save_tiny_model(tmp_path / "model"), quantization, adapters)
    before = {name: (id(p), p.dtype) for name, p in model.named_parameters()}
    computed: set[torch.dtype] = set()
    handles = [
        module.register_forward_hook(lambda _, __, out: computed.add(out.dtype), always_call=True)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    with (
        torch.no_grad(),
        computed_in(torch.float32, model, model.get_output_embeddings()),
        torch.autocast("cpu", enabled=False),
    ):
        found = values(shared_logps(model, *NARROW))
        # 4-bit layers give back their input's dtype
    assert computed == {torch.float32}
    for handle in handles:
        handle.remove()
    assert {name: (id(p), p.dtype) for name, p in model.named_parameters()} == before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    if quantization is None:
        with torch.no_grad():
            torch.testing.assert_close(found, values(plain_logps(model.float(), *NARROW)), atol=1e-5, rtol=0)


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
