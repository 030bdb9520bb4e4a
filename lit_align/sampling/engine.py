"""What samplers share whose answers come from an inference engine instead of the policy's own module."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lit_align.records import Candidate, FinishReason
from lit_align.sampling.base import Sampler
from lit_align.seeding import derive_seed

_SEEDS = 2**31  # engines take 32 or 64 bits, and add small numbers to them


class EngineSampler(Sampler):
    """The distribution to draw from, in the terms of vLLM.

    Args:
        num_candidates: candidates a prompt (K), at least 1.
        temperature: divides the logits; 0 is greedy, and all K candidates are then the same.
        top_p: keep the most likely tokens that hold this share of the probability, in (0, 1].
        top_k: keep this many most likely tokens; 0 keeps all.
        min_new_tokens: no candidate ends before this many tokens; 1 forbids the empty answer.
        max_new_tokens: candidates are cut at this many tokens (`FinishReason.LENGTH`).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        num_candidates: int = 4,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_new_tokens: int = 1,
        max_new_tokens: int = 256,
    ) -> None:
        super().__init__(num_candidates)
        if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
            raise ValueError(
                "expected temperature at least 0 (greedy), top_p in (0, 1] and top_k at least 0 (all tokens), got "
                f"{temperature}, {top_p} and {top_k}"
            )
        if not 0 <= min_new_tokens <= max_new_tokens or max_new_tokens < 1:
            raise ValueError(
                f"expected 0 <= min_new_tokens <= max_new_tokens, got {min_new_tokens} and {max_new_tokens}"
            )
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.min_new_tokens = min_new_tokens
        self.max_new_tokens = max_new_tokens

    def drawn(self, wanted: int) -> int:
        """Candidates to draw where `wanted` are: greedy ones are all the same."""
        return 1 if self.temperature == 0 else wanted

    def settings(self, drawn: int, stop_ids: Sequence[int], seed: int, prompt: int) -> dict[str, Any]:
        """vLLM's sampling parameters for one prompt; none is left to a server's or a model's own defaults.

        Args:
            drawn: candidates of the prompt.
            stop_ids: a candidate ends at the first of these ids, and at no other.
            seed: of the call.
            prompt: the prompt's place in the call.
        """
        return {
            "n": drawn,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_tokens": self.min_new_tokens,
            "max_tokens": self.max_new_tokens,
            "stop_token_ids": list(stop_ids),
            "ignore_eos": True,
            "seed": derive_seed(seed, "engine", prompt) % _SEEDS,
        }


def candidate_of_ids(ids: list[int], stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Candidate:
    """A candidate of sampled ids, up to the first stop id, which stays in `token_ids` and leaves the text."""
    stop = next((n for n, token in enumerate(ids) if token in stop_ids), None)
    kept = ids if stop is None else ids[: stop + 1]
    text = tokenizer.decode(
        kept if stop is None else kept[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    reason = FinishReason.LENGTH if stop is None else FinishReason.STOP
    return Candidate(str(text), finish_reason=reason, token_ids=tuple(kept))


def adapter_digest(policy: nn.Module) -> str:
    """A hash of the weights of the policy's active adapter, in hex.

    Raises:
        ValueError: the policy has no adapter.
    """
    from peft import get_peft_model_state_dict

    name = _active_adapter(policy)
    digest = hashlib.blake2b(digest_size=8)
    weights = get_peft_model_state_dict(policy, adapter_name=name, save_embedding_layers=False)
    for key, weight in sorted(weights.items()):
        digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_adapter(policy: nn.Module, folder: Path) -> None:
    """Saves the policy's active adapter as peft does, without anything of its base."""
    name, model = _active_adapter(policy), policy
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)  # type: ignore[operator]
    if name != "default":  # peft puts any other into a folder of its name
        for path in (folder / name).iterdir():
            path.rename(folder / path.name)
        (folder / name).rmdir()


def _active_adapter(policy: nn.Module) -> str:
    name = getattr(policy, "active_adapter", None)
    if not isinstance(name, str) or not hasattr(policy, "peft_config"):
        raise ValueError(
            "this sampler brings a LoRA adapter to an engine that holds the base, but the policy has none: set "
            "`policy.lora`, or take TransformersSampler"
        )
    return name
