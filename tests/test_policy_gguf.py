"""GGUF files: converted once, exactly, whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_align.batch import Padded
from lit_align.policy import PolicySpec, cache_dir, gguf, sequence_logps
from lit_align.policy.load import load_model, load_tokenizer

gguf_format = pytest.importorskip("gguf")

PROMPT, COMPLETION = Padded.from_sequences([[4, 5, 6]], 0), Padded.from_sequences([[7, 8, 9]], 0)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two halves of Llama's rotary dimensions interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Writes a tiny Llama as GGUF, with a tokenizer of its own ids."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config = model.config
    writer = gguf_format.GGUFWriter(target, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads((source / "tokenizer.json").read_text())
    tokens = {**vocabulary["model"]["vocab"], **{t["content"]: t["id"] for t in vocabulary["added_tokens"]}}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokens, key=lambda token: tokens[token]))
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["model"]["merges"]])
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, parameter in model.named_parameters():
        value = parameter.detach().to(dtype).float().numpy()
        if "q_proj" in name or "k_proj" in name:
            value = permuted(value, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gguf_file(tiny_model: Path, tmp_path: Path) -> Path:
    write_gguf(tiny_model, tmp_path / "tiny.gguf", torch.float32)
    return tmp_path / "tiny.gguf"


def test_the_cache_folder_follows_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("LIT_ALIGN_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "lit-align"


def test_the_converted_model_is_the_one_in_the_file(cache: Path, tiny_model: Path, gguf_file: Path) -> None:
    with torch.no_grad():
        found = sequence_logps(load_model(PolicySpec(str(gguf_file))), PROMPT, COMPLETION).logps
        expected = sequence_logps(load_model(PolicySpec(str(tiny_model))), PROMPT, COMPLETION).logps
    torch.testing.assert_close(found, expected)
    tokenizer = load_tokenizer(PolicySpec(str(gguf_file)))
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer("tea")["input_ids"] == load_tokenizer(PolicySpec(str(tiny_model)))("tea")["input_ids"]


def test_converts_once_and_leaves_a_plain_model(cache: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gguf.converted_gguf(gguf_file)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert {"generation_config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    monkeypatch.setattr(gguf, "_convert", None)  # a second conversion would fail
    assert gguf.converted_gguf(gguf_file) == folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_stored_in_the_smallest_dtype_that_loses_nothing(
    dtype: torch.dtype, cache: Path, tiny_model: Path, tmp_path: Path
) -> None:
    write_gguf(tiny_model, tmp_path / "typed.gguf", dtype)
    model = load_model(PolicySpec(str(tmp_path / "typed.gguf")))
    original = dict(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        torch.testing.assert_close(parameter.float(), original[name].to(dtype).float(), rtol=0, atol=0)


def test_another_file_of_the_same_name_is_another_model(cache: Path, tiny_model: Path, gguf_file: Path) -> None:
    first = gguf.converted_gguf(gguf_file)
    write_gguf(tiny_model, gguf_file, torch.bfloat16)
    assert gguf.converted_gguf(gguf_file) != first


def test_a_broken_file_is_an_error_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(ValueError, match="Is the file whole"):
        load_model(PolicySpec(str(tmp_path / "broken.gguf")))
    assert [p for p in (cache / "gguf").iterdir() if p.is_dir()] == []


def _convert_in_child(path: str, queue: multiprocessing.queues.Queue[str]) -> None:
    queue.put(str(gguf.converted_gguf(Path(path))))


def test_two_processes_end_with_one_folder(cache: Path, gguf_file: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_convert_in_child, args=(str(gguf_file), queue)) for _ in range(2)]
    for child in children:
        child.start()
    folders = {queue.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(folders) == 1
    assert [str(p) for p in (cache / "gguf").iterdir() if p.is_dir()] == list(folders)
