"""Does the exported folder give the numbers of the trained policy? By transformers and peft alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lit_align.policy.load import base_options, load_config
from lit_align.policy.nf4 import keep_trainable_on_cpu
from lit_align.policy.precision import HALF_PRECISIONS, dtype_of_products
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.spec import PolicySpec
from lit_align.records import Message
from lit_align.sampling import TransformersSampler
from lit_align.trained import TrainedPolicy
from lit_align.trained.loading import ADAPTER

LIMIT = 1e-5
"""Nats a token, on average, by which two models in float32 may differ."""
HALF_LIMIT = 0.05
"""The same if one of them is in bfloat16 or float16, where a merged weight is rounded."""
QUESTIONS = (
    "What is a good way to begin the day?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
    "My friend is sad. What can I say?",
)

Answers = Sequence[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Difference:
    """How far two models' log-probs of the same answers are apart, in nats a token.

    Args:
        mean: of the absolute differences.
        largest: of them.
        tokens: compared.
        limit: what `mean` may be; None if any will do.
    """

    mean: float
    largest: float
    tokens: int
    limit: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.2g} nats a token (at most {self.largest:.2g}) on {self.tokens} tokens"


@dataclass(frozen=True)
class Probe:
    """Log-probs of some answers under a policy.

    Args:
        answers: prompt and answer of each, as ids.
        logps: of all tokens of the answers, float32 on the CPU.
        half: whether the model is in half precision.
    """

    answers: Answers
    logps: Tensor
    half: bool

    @classmethod
    def of(cls, policy: TrainedPolicy, answers: Answers | None = None) -> Probe:
        """Computes the log-probs of answers; None takes the policy's own to some questions."""
        chosen = answers if answers is not None else _answers(policy)
        half = dtype_of_products(policy.model) in HALF_PRECISIONS
        return cls(chosen, _logps(policy.model, chosen), half)


def demand_equal(folder: Path, spec: PolicySpec, probe: Probe, trained: Probe | None) -> list[Difference]:
    """Loads an exported folder and compares it.

    Args:
        folder: as it was exported.
        spec: how the policy was loaded that was written.
        probe: of that policy.
        trained: of the policy as it was trained, where that was in another precision.

    Returns:
        The difference from the policy, and that from the trained one if it is another.

    Raises:
        ValueError: the folder holds another model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet_libraries():
        model = _load(folder, spec)
    if not getattr(model, "hf_device_map", None):
        nn.Module.to(model, device)
    half = probe.half or dtype_of_products(model) in HALF_PRECISIONS
    logps = _logps(model, probe.answers)
    found = _compare(logps, probe.logps, HALF_LIMIT if half else LIMIT)
    if found.limit is not None and not found.mean <= found.limit:
        raise ValueError(
            f"the exported model differs from the trained one by {found}, and {found.limit:g} is what rounding may "
            "make: nothing was written. --dtype float32 keeps more digits; --no-check writes it all the same"
        )
    return [found, *([] if trained is None else [_compare(logps, trained.logps)])]


def _compare(logps: Tensor, others: Tensor, limit: float | None = None) -> Difference:
    apart = (logps - others).abs()
    return Difference(float(apart.mean()), float(apart.max()), apart.numel(), limit)


def _load(folder: Path, spec: PolicySpec) -> Any:
    if not (folder / ADAPTER).is_file():
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=spec.trust_remote_code
        ).eval()
    from peft import AutoPeftModelForCausalLM

    options = base_options(spec, load_config(spec))
    kept = {key: options[key] for key in ("dtype", "quantization_config") if key in options}
    model = AutoPeftModelForCausalLM.from_pretrained(folder, **copy.deepcopy(kept)).eval()
    keep_trainable_on_cpu(model)  # the packed form of a CPU does not take every shape
    return model


def _answers(policy: TrainedPolicy) -> Answers:
    prompts = [(Message("user", question),) for question in QUESTIONS]
    sampler = TransformersSampler(num_candidates=1, temperature=0, max_new_tokens=32)
    answers = policy.answer(prompts, sampler)
    return [
        (policy.encoder.encode_prompt(prompt), list(candidates[0].token_ids or ()))
        for prompt, candidates in zip(prompts, answers, strict=True)
    ]


@torch.no_grad()
def _logps(model: nn.Module, answers: Answers) -> Tensor:
    """The log-probs of all tokens of the answers, by the plain forward pass, one answer at a time."""
    device = next(model.parameters()).device
    parts = []
    for prompt, answer in answers:
        ids = torch.tensor([[*prompt, *answer]], device=device)
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        parts.append(logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].cpu())
    return torch.cat(parts)
