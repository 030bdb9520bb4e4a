"""LoRA layers that add in place, against peft's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from transformers import AutoModelForCausalLM

from lit_align.policy import LoraSpec, PolicySpec
from lit_align.policy.lora import InPlaceLoraLinear, add_in_place

IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))


def with_adapter(folder: Path, ours: bool, dtype: str = "float32", **settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = get_peft_model(model, add_in_place(config, model) if ours else config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def run(model: nn.Module, autocast: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=IDS).logits
    logits.float().square().mean().backward()
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("dtype", "autocast", "settings", "tolerance"),
    [
        ("float32", False, {}, 1e-6),
        ("float32", False, {"lora_dropout": 0.3}, 1e-6),
        ("float32", False, {"use_rslora": True}, 1e-6),
        ("float32", True, {}, 0.02),  # rounds once less than peft
        ("bfloat16", False, {}, 0.02),
        ("float32", False, {"use_dora": True}, 0.0),  # peft's own
        ("float32", False, {"lora_bias": True}, 0.0),
    ],
)
def test_equals_peft(
    tiny_model: Path, dtype: str, autocast: bool, settings: dict[str, object], tolerance: float
) -> None:
    ours = with_adapter(tiny_model, True, dtype, **settings)
    peft = with_adapter(tiny_model, False, dtype, **settings)
    layers = [type(module) for module in ours.modules() if isinstance(module, LoraLinear)]
    assert layers and set(layers) == {InPlaceLoraLinear}
    for model in (ours, peft):
        model.train()
    (logits, gradients), (wanted, wanted_gradients) = run(ours, autocast), run(peft, autocast)
    assert logits.dtype == wanted.dtype and len(gradients) == len(wanted_gradients) > 0
    scale = wanted.float().abs().max().item()
    torch.testing.assert_close(
        logits.float(), wanted.float(), atol=max(tolerance, 1e-7) * max(scale, 1), rtol=tolerance
    )
    top = max(gradient.abs().max().item() for gradient in wanted_gradients)
    for one, other in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=max(tolerance, 1e-7) * top, rtol=max(tolerance, 1e-5))


def test_adapter_off_second_adapter_and_merged(tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)(input_ids=IDS).logits
    ours, peft = with_adapter(tiny_model, True), with_adapter(tiny_model, False)
    for model in (ours, peft):
        torch.manual_seed(3)
        model.add_adapter("second", model.peft_config["default"])
        for name, parameter in model.named_parameters():
            if "lora_B.second" in name:
                nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        with ours.disable_adapter():
            assert torch.equal(ours(input_ids=IDS).logits, base)
        for name in ("second", "default"):
            ours.set_adapter(name)
            peft.set_adapter(name)
            torch.testing.assert_close(ours(input_ids=IDS).logits, peft(input_ids=IDS).logits)
        for model in (ours, peft):
            model.base_model.set_adapter(["default", "second"])  # two at once: peft's own way
        torch.testing.assert_close(ours(input_ids=IDS).logits, peft(input_ids=IDS).logits)
        ours.merge_adapter()
        torch.testing.assert_close(ours(input_ids=IDS).logits, peft(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)


def test_fresh_and_saved_adapters_have_it_and_quantised_models_do_not(tiny_model: Path, tmp_path: Path) -> None:
    fresh = PolicySpec(str(tiny_model), lora=LoraSpec(r=2)).load_model()
    fresh.save_pretrained(tmp_path / "adapter")
    assert "custom" not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    saved = PolicySpec(str(tiny_model), adapter=str(tmp_path / "adapter")).load_model()
    four_bit = PolicySpec(str(tiny_model), lora=LoraSpec(r=2), quantization="nf4").load_model()
    for model, wanted in ((fresh, True), (saved, True), (four_bit, False)):
        found = [isinstance(module, InPlaceLoraLinear) for module in model.modules() if hasattr(module, "lora_A")]
        assert found and set(found) == {wanted}
