"""Shared by the samplers that draw from an inference engine instead of the policy's own module."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_align.sampling.base import TokenSampler
from lit_align.seeding import derive_seed

_SEEDS = 2**31  # engines take 32 or 64 bits, and add small numbers to them


class EngineSampler(TokenSampler):
    """The distribution to draw from, in the terms of vLLM. See :class:`TokenSampler` for the arguments."""

    runs_policy = False

    def settings(self, num_draws: int, stop_ids: Sequence[int], seed: int) -> dict[str, Any]:
        """vLLM's sampling parameters for one prompt; none is left to a server's or a model's own defaults.

        Args:
            num_draws: candidates of the prompt.
            stop_ids: a candidate ends at the first of these ids, and at no other.
            seed: the prompt's seed.
        """
        return {
            "n": num_draws,
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
            "seed": derive_seed(seed, "engine") % _SEEDS,
        }


def adapter_digest(policy: nn.Module) -> str:
    """A hash of the weights of the policy's active adapter, in hex, if an engine takes such adapters.

    Raises:
        ValueError: the policy has no adapter, or its adapter is off, or is more than plain LoRA.
    """
    from peft import get_peft_model_state_dict

    name = _active_adapter(policy)
    config = policy.peft_config[name]  # type: ignore[index]
    if getattr(config, "use_dora", False) or getattr(config, "modules_to_save", None):
        raise ValueError(
            "vLLM takes plain LoRA adapters, neither `lora.dora` nor `lora.modules_to_save`: drop them, or take "
            "TransformersSampler"
        )
    digest = hashlib.blake2b(digest_size=8)
    weights = get_peft_model_state_dict(policy, adapter_name=name, save_embedding_layers=False)
    for key, weight in sorted(weights.items()):
        digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_adapter(policy: nn.Module, folder: Path) -> None:
    """Saves the policy's active adapter as peft does, without any weights of its base."""
    name = _active_adapter(policy)
    model: Any = policy
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    if name != "default":  # peft puts any other adapter into a subfolder of its name
        for path in (folder / name).iterdir():
            path.rename(folder / path.name)
        (folder / name).rmdir()


def _active_adapter(policy: nn.Module) -> str:
    from peft.tuners.tuners_utils import BaseTunerLayer

    name = getattr(policy, "active_adapter", None)
    if not isinstance(name, str) or not hasattr(policy, "peft_config"):
        raise ValueError(
            "this sampler brings a LoRA adapter to an engine that holds the base, but the policy has none: set "
            "`policy.lora`, or take TransformersSampler"
        )
    if any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in policy.modules()):
        raise ValueError(
            "this sampler brings a LoRA adapter to an engine, and the policy's adapter is off, as it is where the "
            "start of a run answers: take TransformersSampler for that"
        )
    return name
