"""Tiny real models and tokenizers, built on the spot: nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from lit_align.sampling import SamplingRequest
from lit_align.seeding import derive_seed

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "Give one fact about tea. Tea is a drink made from leaves, and people love it all over the world.",
    "Write a short sentence about the sea! the sea is deep and blue, is it not? Well, bees like honey.",
]


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE that can encode any text, with ChatML tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = chat_template
    return fast


def tiny_llama_config(vocab_size: int = 320) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )


def save_tiny_model(
    folder: Path, *, seed: int = 0, config: PretrainedConfig | None = None, chat_template: str | None = CHAT_TEMPLATE
) -> Path:
    """Saves a tiny random model with its tokenizer, as `save_pretrained` would leave a real one."""
    tokenizer = tiny_tokenizer(chat_template)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config or tiny_llama_config(len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sampling_request(
    model: Any, tokenizer: Any, prompt_ids: Sequence[Sequence[int]], seed: int = 0, **more: Any
) -> SamplingRequest:
    """A request whose prompts have seeds of their own."""
    seeds = [derive_seed(seed, place) for place in range(len(prompt_ids))]
    return SamplingRequest(model, tokenizer, prompt_ids, **{"seeds": seeds, "stop_ids": (), "pad_id": 0, **more})


def metaspace_tokenizer(prepend: str = "first") -> PreTrainedTokenizerFast:
    """A BPE over pieces with `▁` for spaces and bytes for the rest, as SentencePiece makes them; Llama 2's kind.

    Args:
        prepend: where a text gets a space in front: "first" (of a row) or "always" (behind a special token, too).
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend, split=False)
    bytes_to_text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(bytes_to_text)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=["▁", *map(chr, range(33, 127))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([word for text in CORPUS for word in text.split()], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the bytes are pieces like others
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
    )


def save_adapter(base: Path, folder: Path, **settings: object) -> Path:
    """An adapter that does something, as peft saves it."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False, **settings}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    adapted.save_pretrained(str(folder))
    return folder
