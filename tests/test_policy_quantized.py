"""Bases in 8 bits, and what peft offers beside plain LoRA, against peft's own; saved, loaded by peft alone, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from lit_align.batch import Padded
from lit_align.losses import DPO
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, load_model, plain_logps
from lit_align.policy.lora import InPlaceLora
from lit_align.policy.nf4 import keep_trainable_on_cpu
from lit_align.policy.quantized import quantization_settings
from lit_align.sampling.engine import save_adapter
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.module import AlignmentModule
from tests.helpers.modules import Recorder, loader, trainer
from tests.helpers.tiny import save_tiny_model, tiny_llama_config

IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))
PROMPT = Padded.from_sequences([[5, 6, 7], [8]], 0)
COMPLETIONS = [Padded.from_sequences([[9, 10], [11, 12, 13]], 0), Padded.from_sequences([[14], [15, 16]], 0)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "whole head": {"modules_to_save": ["lm_head"]},
}
QUANTISED = [None, "nf4", "int8", "fp8"]
BOTH = [(q, o) for q in QUANTISED for o in OPTIONS if not (q == "nf4" and o == "orthogonal")]


def need(quantization: str | None) -> None:
    if quantization in ("int8", "fp8"):
        pytest.importorskip("torchao", reason="int8 and fp8 are torchao's")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer has weights of its own."""
    config = tiny_llama_config()
    config.tie_word_embeddings = False
    return save_tiny_model(tmp_path_factory.mktemp("untied"), config=config)


def policy(folder: Path, quantization: Any, options: dict[str, Any], dtype: Any = "float32") -> nn.Module:
    return load_model(
        PolicySpec(str(folder), dtype=dtype, quantization=quantization, lora=LoraSpec(r=4, alpha=6, **options))
    )


def base_of(folder: Path, quantization: str | None) -> Any:
    """The base as transformers alone loads it."""
    settings = {} if quantization is None else {"quantization_config": quantization_settings(quantization, None)}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)
    keep_trainable_on_cpu(model)
    return model


def move(model: nn.Module) -> None:
    """Gives what is trained other values, always the same."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def logits_and_gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = model(input_ids=IDS).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("quantization", "option"), BOTH)
def test_equals_peft_and_is_loaded_by_peft_alone(
    untied: Path, tmp_path: Path, quantization: str | None, option: str
) -> None:
    need(quantization)
    ours = policy(untied, quantization, OPTIONS[option])
    with torch.no_grad(), ours.disable_adapter():
        base = ours(input_ids=IDS).logits
    torch.testing.assert_close(ours(input_ids=IDS).logits, base, atol=1e-5, rtol=0)  # begins as the base
    move(ours)
    logits, gradients = logits_and_gradients(ours)
    assert (logits - base).abs().max() > 0.01
    peft = get_peft_model(base_of(untied, quantization), config_of(ours))
    peft.load_state_dict({n: p for n, p in ours.named_parameters() if p.requires_grad}, strict=False)
    assert any(isinstance(layer, InPlaceLora) for layer in ours.modules())
    assert not any(isinstance(layer, InPlaceLora) for layer in peft.modules())
    wanted, wanted_gradients = logits_and_gradients(peft)
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == wanted_gradients.keys() and len(gradients) >= 28
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], atol=1e-6, rtol=1e-4, msg=name)
    ours.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base_of(untied, quantization), tmp_path / "adapter")
    torch.testing.assert_close(loaded(input_ids=IDS).logits, logits, atol=1e-5, rtol=1e-5)
    again = load_model(PolicySpec(str(untied), dtype="float32", quantization=quantization,  # type: ignore[arg-type]
                                  adapter=str(tmp_path / "adapter")))  # fmt: skip
    torch.testing.assert_close(again(input_ids=IDS).logits, logits, atol=1e-5, rtol=1e-5)


def config_of(model: Any) -> LoraConfig:
    """The adapter's settings as peft takes them, without lit-align's layers."""
    settings = model.peft_config["default"].to_dict()
    kept = ("r", "lora_alpha", "target_modules", "modules_to_save", "use_dora", "use_rslora", "task_type")
    return LoraConfig(**{name: settings[name] for name in kept})


@pytest.mark.parametrize(("quantization", "option"), [("int8", "plain"), ("fp8", "plain"), ("int8", "dora")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shares_the_prompt(untied: Path, quantization: str, option: str, dtype: str) -> None:
    need(quantization)
    model = policy(untied, quantization, OPTIONS[option], dtype)
    move(model)
    forward = CompletionForward()
    with torch.no_grad():
        found = forward(model, PROMPT, COMPLETIONS)
        wanted = plain_logps(model, PROMPT, COMPLETIONS)
    assert forward._checks[model].accepted
    for one, other in zip(found, wanted, strict=True):
        difference = (one.logps[one.mask] - other.logps[other.mask]).abs().max()
        assert difference < (1e-5 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_keeps_no_unpacked_weight_for_the_backward(untied: Path, quantization: str) -> None:
    need(quantization)
    model: Any = policy(untied, quantization, {}, "bfloat16")
    layer = model.base_model.model.model.layers[0].mlp.down_proj.base_layer
    x = torch.randn(3, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        product = layer(x)
    product.sum().backward()
    assert not kept and x.grad is not None
    unpacked = layer.weight.dequantize()
    torch.testing.assert_close(product, x @ unpacked.t(), atol=0.02, rtol=0.02)
    torch.testing.assert_close(x.grad, unpacked.sum(0).expand_as(x.grad), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("quantization", "option"), [("int8", "dora"), ("fp8", "plain"), (None, "whole head")])
def test_a_resumed_fit_is_the_whole_one(untied: Path, tmp_path: Path, quantization: Any, option: str) -> None:
    need(quantization)
    spec = PolicySpec(str(untied), quantization=quantization, lora=LoraSpec(r=4, **OPTIONS[option]))

    def module() -> AlignmentModule:
        seed_everything(0, verbose=False)
        return AlignmentModule(spec, DPO(), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))

    whole, first, rest = Recorder(), Recorder(), Recorder()
    trainer(tmp_path / "whole", whole, max_steps=4).fit(module(), loader(1))
    saving = AlignmentCheckpoint(dirpath=str(tmp_path / "saved"), every_n_train_steps=2)
    trainer(tmp_path / "first", first, saving, max_steps=2).fit(module(), loader(1))
    saved = tmp_path / "saved" / "last.ckpt"
    trainer(tmp_path / "rest", rest, max_steps=4).fit(module(), loader(1), ckpt_path=saved)
    assert [*first.losses, *rest.losses] == whole.losses and len(set(whole.losses)) == 4
    names = torch.load(saved, weights_only=True)["state_dict"]
    assert all("lora" in name or "modules_to_save" in name for name in names)


@pytest.mark.parametrize("options", [{"dora": True}, {"modules_to_save": ["lm_head"]}])
def test_adapters_that_vllm_does_not_take_are_saved(untied: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    save_adapter(policy(untied, None, options), tmp_path)  # as an export does
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantization": "int8"}, "in 8 bits, which cannot be trained itself"),
        ({"quantization": "int8", "compile": True, "lora": LoraSpec()}, "`compile` is not for quantization"),
        ({"quantization": "nf4", "lora": LoraSpec(init="orthogonal")}, "not for 4-bit bases"),
        ({"quantization": "nf4", "lora": LoraSpec(target_modules=["v_proj"], modules_to_save=["q_proj"])}, "quantised"),
        ({"lora": LoraSpec(modules_to_save=["nothing"])}, "got 'nothing'. Its layers: down_proj"),
    ],
)
def test_what_cannot_work_is_refused(untied: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_model(PolicySpec(str(untied), dtype="float32", **settings))


def test_a_tied_layer_is_not_saved_whole(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="shares its weight"):
        load_model(PolicySpec(str(tiny_model), lora=LoraSpec(modules_to_save=["lm_head"])))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init": "pissa"}, "must be one of default, gaussian, orthogonal, got 'pissa'"),
        ({"init": "orthogonal", "r": 3}, "even lora.r, got 3"),
        ({"dora": True, "target_parameters": ["mlp.experts.down_proj"]}, "Drop one"),
    ],
)
def test_settings_of_adapters_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LoraSpec(**settings)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_align.policy.quantized.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"lit-align\[torchao\]"):
        quantization_settings("int8", None)
