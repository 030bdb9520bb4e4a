"""Adapters on experts that are one parameter a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_align import DPO, AlignmentModule, LoraSpec, PolicySpec
from lit_align.policy import AdapterCopy, CompletionForward, plain_logps
from lit_align.policy.load import load_model
from tests.helpers.row_models import MIXTURES, NARROW, values
from tests.helpers.tiny import save_tiny_model

TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def spec_of(name: str, folder: Path, **lora: Any) -> PolicySpec:
    save_tiny_model(folder, config=MIXTURES[name])
    return PolicySpec(str(folder), dtype="float32", lora=LoraSpec(r=2, **lora))


@pytest.mark.parametrize("name", ["gpt_oss", "phimoe", "qwen2_moe"])
def test_experts_without_an_adapter_are_said_with_what_reaches_them(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(spec_of(name, tmp_path))
    weights = {n: p.numel() for n, p in model.named_parameters() if "lora_" not in n}
    experts = sum(size for n, size in weights.items() if n.endswith(("gate_up_proj", "experts.down_proj")))
    said = capsys.readouterr().out
    assert f"{100 * experts / sum(weights.values()):.0f} % of the weights get no adapter" in said
    assert f"lora.target_parameters: [{', '.join(sorted(TARGETS))}]" in said


def test_a_dense_model_says_nothing_of_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(PolicySpec(str(save_tiny_model(tmp_path)), lora=LoraSpec(r=2)))
    assert "no adapter" not in capsys.readouterr().out


def test_a_target_that_is_no_layer_is_refused_even_beside_one_that_is(tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path))
    with pytest.raises(ValueError, match=r"got 'v_prj'. Its layers: .*down_proj.*v_proj"):
        load_model(PolicySpec(folder, lora=LoraSpec(r=2, target_modules=["q_proj", "v_prj"])))
    load_model(PolicySpec(folder, lora=LoraSpec(r=2, target_modules=["self_attn.q_proj", "lm_head", "embed_tokens"])))


def test_adapters_reach_the_experts_and_are_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of("gpt_oss", tmp_path / "model", target_parameters=TARGETS)
    module = AlignmentModule(spec, DPO())
    module.configure_model()
    assert "no adapter" not in capsys.readouterr().out
    model, forward = module.policy, CompletionForward()
    assert model is not None
    base = values(forward(model, *NARROW))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted = forward(model, *NARROW)
    assert forward._checks[model].accepted
    torch.testing.assert_close(values(adapted), values(plain_logps(model, *NARROW)), atol=1e-5, rtol=0)
    sum(one.sum().sum() for one in adapted).backward()
    of_experts = [p for name, p in model.named_parameters() if "lora_" in name and "experts" in name]
    assert len(of_experts) == 8 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in of_experts)
    with torch.no_grad(), module.reference.active(model) as reference:
        torch.testing.assert_close(values(forward(reference, *NARROW)), base, atol=1e-5, rtol=0)

    model.save_pretrained(tmp_path / "adapter")
    saved = PolicySpec(spec.model, dtype="float32", adapter=str(tmp_path / "adapter"))
    again = AlignmentModule(saved, DPO(), AdapterCopy())
    again.configure_model()
    assert again.policy is not None
    with torch.no_grad():
        torch.testing.assert_close(values(forward(again.policy, *NARROW)), values(adapted), atol=1e-5, rtol=0)
        with again.reference.active(again.policy) as reference:
            torch.testing.assert_close(values(forward(reference, *NARROW)), values(adapted), atol=1e-5, rtol=0)
