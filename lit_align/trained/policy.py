"""The trained policy, and the one that it started from."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lit_align.data.encoder import Encoder
from lit_align.policy.adapter import fill_adapter
from lit_align.policy.base_record import demand_same_base
from lit_align.policy.load import load_generation_config, load_model, load_stop_ids, load_tokenizer
from lit_align.policy.reference import AdapterOff, ModelReference, Reference, default_reference
from lit_align.policy.spec import PolicySpec
from lit_align.records import Candidate, Prompt
from lit_align.sampling import Sampler, SamplingRequest
from lit_align.seeding import derive_seed
from lit_align.training.sharded_files import is_sharded, read_checkpoint

WEIGHTS = "policy."
"""What the names of a policy's weights begin with in a checkpoint."""


@dataclass
class TrainedPolicy:
    """A trained policy, in eval mode.

    Args:
        spec: its base, how that is loaded, and its chat template.
        model: the trained policy; with an adapter it is a `PeftModel`, unmerged.
        tokenizer: with the run's chat template, and the values of its variables.
        reference: the policy as the fit began; None if that is not known.
    """

    spec: PolicySpec
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    reference: Reference | None = None

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Writes and tokenises prompts, as in training; prompts of any length."""
        return Encoder(self.tokenizer, model_stops=load_stop_ids(self.spec))

    @functools.cached_property
    def generation(self) -> GenerationConfig | None:
        """The model's own generation config; None if it has none."""
        return load_generation_config(self.spec)

    @contextmanager
    def at_start(self) -> Iterator[nn.Module]:
        """Gives the policy as it was before the fit, within the block.

        With fresh adapters that is the base with the adapter off; with a saved adapter, that adapter as it was saved;
        after full fine-tuning, the model that was trained, which is loaded when this is first called.

        Raises:
            ValueError: the start is not known: a folder with all weights does not say what it was trained from.
        """
        if self.reference is None:
            raise ValueError(
                f"{self.spec.model!r} holds all weights and does not say what they were trained from, so that there "
                "is nothing to compare with: give the run folder, with its config.yaml"
            )
        with self.reference.active(self.model) as model:
            yield model.eval()

    def answer(
        self, prompts: Sequence[Prompt], sampler: Sampler, seed: int = 0, start: bool = False, **request: Any
    ) -> list[tuple[Candidate, ...]]:
        """Samples answers.

        Args:
            prompts: chats that end with the user's turn.
            sampler: how to sample, and how many answers a prompt.
            seed: with a prompt's tokens it decides the answers, so that they do not depend on the other prompts.
            start: samples from the policy as it was before the fit.
            request: more fields of :class:`SamplingRequest`, such as `num_candidates` and `progress`.

        Returns:
            One tuple of answers for each prompt.
        """
        if start:
            with self.at_start() as model:
                return self._sample(model, prompts, sampler, seed, request)
        return self._sample(self.model, prompts, sampler, seed, request)

    def _sample(
        self, model: nn.Module, prompts: Sequence[Prompt], sampler: Sampler, seed: int, more: Mapping[str, Any]
    ) -> list[tuple[Candidate, ...]]:
        encoder = self.encoder
        prompt_ids = [encoder.encode_prompt(prompt) for prompt in prompts]
        seeds = [derive_seed(seed, "answer", *ids) for ids in prompt_ids]
        request = SamplingRequest(model, self.tokenizer, prompt_ids, seeds, encoder.stop_ids, encoder.pad_id, **more)
        sampled = sampler.sample(request)
        return [tuple(map(encoder.as_in_data, answers)) for answers in sampled]


def load_policy(start: PolicySpec | None, weights: Path, device: str | torch.device | None = None) -> TrainedPolicy:
    """Loads a policy as it began and puts the trained weights into it.

    Args:
        start: the policy as the fit began; None if `weights` is a folder that holds all of the model.
        weights: a checkpoint, or a model folder.
        device: where to load it to; None takes the GPU, if there is one.

    Raises:
        FileNotFoundError: the base is not there.
        ValueError: the weights are those of another base, or not all of those that were trained.
    """
    if start is None:
        spec = PolicySpec(str(weights))
        policy = TrainedPolicy(spec, load_model(spec), load_tokenizer(spec))
    else:
        spec = replace(start, gradient_checkpointing=False, compile=False)  # of use in training alone
        policy = _load_onto(spec, weights)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    policy.model.requires_grad_(False).eval()
    nn.Module.to(policy.model, target)
    return policy


def _load_onto(spec: PolicySpec, weights: Path) -> TrainedPolicy:
    is_model = weights.is_dir() and not is_sharded(weights)
    of_itself = is_model and spec.adapter == str(weights)
    whole = is_model and spec.lora is None and spec.adapter is None
    model = load_model(replace(spec, model=str(weights), revision=None) if whole else spec)
    reference = AdapterOff() if of_itself else ModelReference(spec) if whole else default_reference(spec)
    reference.attach(model, spec)
    if not is_model:
        restore(model, weights, spec)
    elif not whole and not of_itself:
        fill_adapter(model, str(weights))
    return TrainedPolicy(spec, model, load_tokenizer(spec), reference)


def restore(policy: nn.Module, path: Path, spec: PolicySpec) -> None:
    """Puts the trained weights of a checkpoint into a policy as it was before the fit.

    Raises:
        ValueError: the checkpoint is of another base, or lacks trained weights of the policy.
    """
    checkpoint: dict[str, Any] = read_checkpoint(path)
    demand_same_base(checkpoint, spec)
    saved: Mapping[str, Tensor] = checkpoint["state_dict"]
    weights = {name.removeprefix(WEIGHTS): saved[name] for name in saved if name.startswith(WEIGHTS)}
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    missing = sorted(trained - weights.keys())
    if missing:
        raise ValueError(
            f"expected the {len(trained)} trained weights of the policy in {path}, {len(missing)} are not there, first "
            f"{missing[0]!r}: give the config that the run was trained with (config.yaml in its folder)"
        )
    policy.load_state_dict({name: weights[name] for name in trained}, strict=False)
