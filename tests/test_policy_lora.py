"""LoRA layers that add in place and keep no copies, against peft's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from lit_align.batch import Padded
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, plain_logps
from lit_align.policy.load import load_model
from lit_align.policy.lora import _ROWS, InPlaceLora, Products, _add_low_rank, add_in_place, products_on
from lit_align.policy.nf4 import keep_trainable_on_cpu, nf4_settings
from lit_align.policy.precision import say_float32_products, say_slow_bfloat16
from tests.helpers.tiny import save_tiny_model, tiny_llama_config

IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))


def with_adapter(folder: Path, ours: bool, dtype: str = "float32", nf4: bool = False, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    of_dtype = getattr(torch, dtype)
    quantised = {"quantization_config": nf4_settings(of_dtype)} if nf4 else {}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=of_dtype, **quantised)
    keep_trainable_on_cpu(model)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = get_peft_model(model, add_in_place(config, model) if ours else config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def adapted(model: nn.Module) -> list[Any]:
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert layers
    return layers


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
        ("float32", False, {"nf4": True}, 1e-6),
        ("bfloat16", False, {"nf4": True}, 0.02),
        ("float32", False, {"use_dora": True}, 0.0),  # peft's own
        ("float32", False, {"lora_bias": True}, 0.0),
    ],
)
def test_equals_peft(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    autocast: bool,
    settings: dict[str, Any],
    tolerance: float,
) -> None:
    monkeypatch.setattr("lit_align.policy.lora._ROWS", 5)  # of 14: three parts where casts are needed
    ours = with_adapter(tiny_model, True, dtype, **settings)
    peft = with_adapter(tiny_model, False, dtype, **settings)
    assert all(isinstance(layer, InPlaceLora) for layer in adapted(ours))
    assert not any(isinstance(layer, InPlaceLora) for layer in adapted(peft))
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


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of a GPU, on a CPU."""
    monkeypatch.setattr("lit_align.policy.lora.products_on", lambda _, *dtypes: products_on("cuda", *dtypes))


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_on_a_gpu_the_products_are_in_the_dtype_of_the_base(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, nf4: bool, dropout: float
) -> None:
    """About as exact as peft with its adapters in bfloat16, while weights and gradients are in float32."""
    on_a_gpu(monkeypatch)
    settings: dict[str, Any] = {"nf4": nf4, "lora_dropout": dropout}
    ours = with_adapter(tiny_model, True, "bfloat16", **settings)
    rounded = with_adapter(tiny_model, False, "bfloat16", **settings)
    exact = with_adapter(tiny_model, False, "float32", **settings)
    for model in (ours, rounded, exact):
        model.train()
    for layer in adapted(rounded):
        layer.lora_A.bfloat16()
        layer.lora_B.bfloat16()
    logits, gradients = run(ours)
    rounded_logits, rounded_gradients = run(rounded)
    wanted, wanted_gradients = run(exact)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert {p.dtype for p in ours.parameters() if p.requires_grad} == {torch.float32}

    def error(found: torch.Tensor, exact: torch.Tensor) -> float:
        return ((found.float() - exact).norm() / exact.norm()).item()

    assert 0 < error(logits, wanted) < 1.6 * error(rounded_logits, wanted) < 0.05
    together, rounded_together, wanted_together = (
        torch.cat([gradient.float().flatten() for gradient in each])
        for each in (gradients, rounded_gradients, wanted_gradients)
    )
    assert error(together, wanted_together) < 1.6 * error(rounded_together, wanted_together) < 0.2


def test_the_device_decides_how_products_are_computed() -> None:
    half = torch.bfloat16
    assert products_on("cpu", half, torch.float32) == Products(torch.float32, _ROWS)
    assert products_on("cuda", half, torch.float32) == Products(half, None)
    assert products_on("cuda", torch.float32, torch.float32) == Products(torch.float32, None)
    assert products_on("meta", half, torch.float32) == Products(half, None)  # a plan for a GPU
    with torch.autocast("cpu", half):
        assert products_on("cpu", torch.float32, torch.float32).dtype == half


def test_a_fit_in_float32_says_once_whether_a_gpu_uses_tf32(capsys: pytest.CaptureFixture[str]) -> None:
    say_float32_products("cpu", torch.float32)
    say_float32_products("cuda", torch.bfloat16)
    assert capsys.readouterr().out == ""
    precision = torch.get_float32_matmul_precision()
    try:
        for setting, words in (("highest", "float32, without TF32"), ("high", "in TF32")):
            torch.set_float32_matmul_precision(setting)
            say_float32_products("cuda", torch.float32)
            assert words in " ".join(capsys.readouterr().out.split())
    finally:
        torch.set_float32_matmul_precision(precision)


def test_a_fit_in_bfloat16_says_if_float32_is_faster(capsys: pytest.CaptureFixture[str]) -> None:
    without = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}
    say_slow_bfloat16("cuda", torch.bfloat16, without)
    say_slow_bfloat16("cpu", torch.float32, without)
    say_slow_bfloat16("cpu", torch.bfloat16, {**without, "amx_bf16": True})
    say_slow_bfloat16("cpu", torch.bfloat16, {"architecture": "aarch64"})
    assert capsys.readouterr().out == ""
    say_slow_bfloat16("cpu", torch.bfloat16, without)
    assert "--model.policy.dtype float32" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("rows", [None, 5])
def test_casts_all_rows_together_or_some_at_a_time(rows: int | None) -> None:
    """Under autocast on a GPU the base is in half precision and its input in float32."""
    generator = torch.Generator().manual_seed(0)
    x, down, up, base, weight = (
        torch.randn(*size, generator=generator) for size in ((13, 8), (3, 8), (6, 3), (13, 6), (13, 6))
    )
    for tensor in (x, down, up):
        tensor.requires_grad_()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        found = _add_low_rank(base.to(dtype), x, down, up, 0.5, Products(dtype, rows))
        results.append([found, *torch.autograd.grad((found * weight).sum(), (x, down, up))])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found.float(), wanted, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("nf4", [False, True])
def test_keeps_no_float32_copy_of_what_it_is_given(tiny_model: Path, nf4: bool, autocast: bool) -> None:
    """Adapters are in float32: peft keeps x in their dtype for the backward, once a layer."""
    layer = adapted(with_adapter(tiny_model, True, "bfloat16", nf4))[0]
    x = torch.randn(50, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in {*parameters, x.untyped_storage().data_ptr()}:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with keeping, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = layer(x)
    assert sum(kept.values()) <= 50 * 4 * 4 + 4 * 4 * (layer.in_features + layer.out_features)  # low, and A and B
    found.float().sum().backward()
    assert x.grad is not None


def test_fresh_saved_and_quantised_models_have_it(tiny_model: Path, tmp_path: Path) -> None:
    fresh = load_model(PolicySpec(str(tiny_model), lora=LoraSpec(r=2)))
    fresh.save_pretrained(tmp_path / "adapter")
    assert "custom" not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    saved = load_model(PolicySpec(str(tiny_model), adapter=str(tmp_path / "adapter")))
    four_bit = load_model(PolicySpec(str(tiny_model), lora=LoraSpec(r=2), quantization="nf4"))
    for model, name in ((fresh, ""), (saved, ""), (four_bit, "4bit")):
        assert {type(layer).__name__ for layer in adapted(model)} == {f"InPlaceLoraLinear{name}"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_an_adapted_head_shares_the_prompt(tmp_path: Path, targets: list[str], tied: bool) -> None:
    config = tiny_llama_config()
    config.tie_word_embeddings = tied
    folder = save_tiny_model(tmp_path, config=config)
    model = load_model(PolicySpec(str(folder), dtype="float32", lora=LoraSpec(r=4, target_modules=targets)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    prompt = Padded.from_sequences([[5, 6, 7], [8]], 0)
    completions = [Padded.from_sequences([[9, 10], [11, 12, 13]], 0), Padded.from_sequences([[14], [15, 16]], 0)]
    gradients = []
    forward = CompletionForward()
    for way in (forward, plain_logps):
        found = way(model, prompt, completions)
        sum(one.sum().sum() for one in found).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        gradients[-1] += [one.logps[one.mask].detach() for one in found]
    assert forward._checks[model].accepted and len(gradients[0]) == len(gradients[1]) >= 4
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)
    with torch.no_grad(), model.disable_adapter():
        found = forward(model, prompt, completions)
    base = AutoModelForCausalLM.from_pretrained(folder)
    for one, wanted in zip(found, plain_logps(base, prompt, completions), strict=True):
        torch.testing.assert_close(one.logps[one.mask], wanted.logps[wanted.mask].detach(), atol=1e-5, rtol=0)
