"""Random models, their tokenizer and pairs of random tokens: nothing is downloaded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_align.batch import Padded, PairBatch

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

FIRST_PLAIN_ID = 2
"""0 pads, 1 ends a completion."""
SPECIAL = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Pair = dict[str, list[int]]
Lengths = Callable[[random.Random], tuple[int, int, int]]


@dataclass(frozen=True)
class RandomLlama:
    """The size of a randomly initialised Llama, in the proportions of SmolLM2 where nothing else is set.

    The defaults have 31 million parameters, 19 million of them in the embeddings.

    Args:
        hidden: width.
        layers: number of layers.
        vocabulary: number of tokens.
        intermediate: width within the MLP.
        heads: number of heads.
        kv_heads: number of heads of keys and values.
        tied: whether the output layer is the embedding.
    """

    hidden: int = 384
    layers: int = 8
    vocabulary: int = 49152
    intermediate: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    tied: bool = True

    def config(self) -> LlamaConfig:
        """The model's config."""
        from transformers import LlamaConfig

        heads = self.heads or max(3, self.hidden // 64)
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate or self.hidden * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=self.kv_heads or heads // 3,
            max_position_embeddings=8192,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            tie_word_embeddings=self.tied,
        )

    def save(
        self, folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", scale: float = 1.0
    ) -> Path:
        """Saves the model, always with the same weights on a device, and a tokenizer of bytes.

        Args:
            folder: where.
            dtype: of the weights.
            device: draws the weights.
            scale: of the matrices: with more than 1, attention and log-probs differ more from token to token.
        """
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []), torch.device(device):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(self.config(), dtype=dtype)
        for parameter in model.parameters():
            if scale != 1 and parameter.ndim > 1:  # norms stay at 1
                parameter.data.mul_(scale)
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte, which can write any text, and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1])
    fast.chat_template = CHAT_TEMPLATE
    return fast


def random_pairs(count: int, lengths: Lengths, vocabulary: int) -> list[Pair]:
    """Makes pairs of random tokens, always the same.

    Args:
        count: number of pairs.
        lengths: draws the lengths of a pair's prompt, chosen and rejected completion.
        vocabulary: size of the model's vocabulary; tokens are drawn from it without the two special ids.
    """
    rng = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(FIRST_PLAIN_ID, vocabulary) for _ in range(length)]

    pairs = []
    for _ in range(count):
        prompt, chosen, rejected = lengths(rng)
        pairs.append({"prompt_ids": tokens(prompt), "chosen_ids": tokens(chosen), "rejected_ids": tokens(rejected)})
    return pairs


def pair_batches(pairs: Sequence[Pair], batch_size: int) -> list[PairBatch]:
    """Makes micro-batches of the pairs, in order."""
    batches = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        prompt, chosen, rejected = (
            Padded.from_sequences([pair[key] for pair in batch], 0)
            for key in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        on_policy = torch.zeros(len(batch), dtype=torch.bool)
        batches.append(PairBatch(prompt, chosen, rejected, on_policy, torch.full((len(batch),), torch.nan)))
    return batches


def move_adapters(model: nn.Module, scale: float = 0.05) -> nn.Module:
    """Gives fresh LoRA adapters, which change nothing, random weights that do; returns the model."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            values: Any = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(values * scale)
    return model
