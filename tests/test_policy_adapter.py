"""Saved adapters: every weight lands where it belongs, or an error names those that do not."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lit_align.policy import ModelReference, PolicySpec
from lit_align.policy.load import load_model
from lit_align.policy.reference import AdapterCopy
from tests.helpers.tiny import save_adapter, save_tiny_model, tiny_llama_config, tiny_tokenizer

WEIGHTS = "adapter_model.safetensors"


def rewrite(folder: Path, change: object) -> Path:
    weights = load_file(folder / WEIGHTS)
    save_file(change(weights), folder / WEIGHTS)
    return folder


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[4, 5, 6, 7]])).logits


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["lm_head", "embed_tokens"]}, {"use_dora": True}])
@pytest.mark.parametrize("safe", [True, False])
def test_a_whole_adapter_gives_pefts_own_model(settings: dict, safe: bool, tiny_model: Path, tmp_path: Path) -> None:
    folder = save_adapter(tiny_model, tmp_path / "a", **settings)
    if not safe:
        torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
        (folder / WEIGHTS).unlink()
    expected = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(folder))
    loaded = load_model(PolicySpec(str(tiny_model), adapter=str(folder)))
    torch.testing.assert_close(logits(loaded), logits(expected))
    assert {p.dtype for p in loaded.parameters() if p.requires_grad} == {torch.float32}


def test_missing_and_unexpected_weights_are_named(tiny_model: Path, tmp_path: Path) -> None:
    renamed = rewrite(
        save_adapter(tiny_model, tmp_path / "renamed"),
        lambda weights: {name.replace("model.layers", "model.language_model.layers"): w for name, w in weights.items()},
    )
    half = rewrite(
        save_adapter(tiny_model, tmp_path / "half"),
        lambda weights: {name: w for name, w in weights.items() if "layers.0" in name},
    )
    with pytest.raises(
        ValueError, match=r"28 weights are missing \(the first is '.*layers.0.mlp.*lora_A.*28 weights are unexpected"
    ):
        load_model(PolicySpec(str(tiny_model), adapter=str(renamed)))
    with pytest.raises(
        ValueError, match=r"14 weights are missing \(the first is '.*layers.1.mlp[^)]*\)\. It says that it was"
    ):
        load_model(PolicySpec(str(tiny_model), adapter=str(half)))


def test_a_missing_module_that_is_saved_whole_is_named(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_adapter(tiny_model, tmp_path / "a", modules_to_save=["lm_head", "embed_tokens"])
    rewrite(folder, lambda weights: {name: w for name, w in weights.items() if "embed_tokens" not in name})
    with pytest.raises(ValueError, match=r"embed_tokens.weight' is missing"):
        load_model(PolicySpec(str(tiny_model), adapter=str(folder)))


def test_an_adapter_of_another_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "a")
    wide = tiny_llama_config(len(tiny_tokenizer()))
    wide.intermediate_size = 48
    other = save_tiny_model(tmp_path / "wide", config=wide)
    with pytest.raises(
        ValueError, match=r"does not fit the model '.*wide'.*size mismatch for .*made on '.*tiny-llama'"
    ):
        load_model(PolicySpec(str(other), adapter=str(adapter)))
    same_shape = save_tiny_model(tmp_path / "other-weights", seed=5)
    with pytest.raises(
        ValueError, match=r"made on '.*tiny-llama', and .* onto '.*other-weights', whose weights are oth"
    ):
        load_model(PolicySpec(str(same_shape), adapter=str(adapter)))
    twin = shutil.copytree(tiny_model, tmp_path / "twin")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_model(PolicySpec(str(twin), adapter=str(adapter)))
    moved = shutil.copytree(tiny_model, tmp_path / "moved" / tiny_model.name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_model(PolicySpec(str(moved), adapter=str(adapter)))


def test_an_adapter_whose_base_is_not_here_is_doubted(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "a")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "someone/a-model"}))
    with pytest.warns(UserWarning, match=r"made on 'someone/a-model', and .*Is it the same model under another name"):
        load_model(PolicySpec(str(tiny_model), adapter=str(adapter)))


def test_a_folder_without_weights_or_with_broken_ones(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_adapter(tiny_model, tmp_path / "a")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"weights of the adapter '.*a' cannot be read"):
        load_model(PolicySpec(str(tiny_model), adapter=str(folder)))
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"has settings but no weights: expected adapter_model.safetensors or"):
        load_model(PolicySpec(str(tiny_model), adapter=str(folder)))


def test_an_adapter_that_trains_biases_has_no_copy_but_a_second_model(tmp_path: Path) -> None:
    config = tiny_llama_config(len(tiny_tokenizer()))
    config.attention_bias = True
    base = save_tiny_model(tmp_path / "base", config=config)
    adapter = save_adapter(base, tmp_path / "a", bias="all")
    assert json.loads((adapter / "adapter_config.json").read_text())["bias"] == "all"
    spec = PolicySpec(str(base), adapter=str(adapter))
    policy = load_model(spec)
    with pytest.raises(ValueError, match="`bias: all`.*Set the module's `reference` to ModelReference"):
        AdapterCopy().attach(policy, spec)
    reference = ModelReference()
    reference.attach(policy, spec)
    with reference.active(policy) as model:
        torch.testing.assert_close(logits(model), logits(policy))
