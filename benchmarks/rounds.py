"""Both sides of `onpolicy.py`: on-policy rounds with lit-align and with TRL, each as its users run them.

The model, the prompts and the rule are the same. `onpolicy.py` says what the time of a round covers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from common import lit_module, lit_trainer
from lightning.pytorch import Callback

from lit_align.doctor.peer import trl_lora, trl_plain

CANDIDATES = 2
"""TRL's online DPO always draws two."""


class Steps(Protocol):
    """See `side.py`."""

    def ready(self, **facts: Any) -> None: ...

    def begin(self) -> None: ...

    def end(self, **facts: Any) -> None: ...


def words_and_letters(text: str) -> float:
    """Scores a text by its letters per word, counted twice in lower case. The scale is fine, so few candidates tie."""
    words = text.split()
    return sum(word.isascii() + len(word) * (1 + word.islower()) for word in words) / max(len(words), 1)


def lit_rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [words_and_letters(candidate) for candidate in candidates]


def run_lit_rounds(settings: dict[str, Any], steps: Steps, folder: Path) -> None:
    """Runs rounds of a data module in a Lightning fit, before its first step."""
    from lit_align.data import AlignmentDataModule
    from lit_align.judges import RuleJudge
    from lit_align.sampling import TransformersSampler

    prompts = folder / "prompts.jsonl"
    static = [{"text": "A.", "score": 0.0}]  # a row has at least one candidate; a single one makes no pair
    rows = [{"prompt": text, "candidates": static} for text in settings["prompts"]]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = AlignmentDataModule(
        str(prompts),
        batch_size=settings["reference_batch"],
        judge=RuleJudge(lit_rule),
        sampler=TransformersSampler(
            num_candidates=CANDIDATES,
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            max_new_tokens=settings["new_tokens"],
            batch_size=settings["sequences"],
        ),
        round_prompts=len(settings["prompts"]),
        on_policy_share=1.0,
        reference_cache=str(folder / "reference"),
    )

    class Rounds(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            steps.ready()
            for _ in range(settings["steps"]):
                steps.begin()
                data.request_round()
                data.next_batch()
                stats = data.round_stats
                parts = {key: stats[key] for key in ("sample_seconds", "judge_seconds", "reference_seconds")}
                steps.end(pairs=stats["pairs"], ties=stats["ties"], **parts)
            trainer.should_stop = True  # a training step counts neither for the time nor for the memory of a round

    module = lit_module(settings["model"], settings["rank"], settings["dtype"], 1e-5)
    lit_trainer(1, Rounds(), folder).fit(module, data)


def run_trl_rounds(settings: dict[str, Any], steps: Steps, folder: Path) -> None:
    """Runs rounds of TRL's OnlineDPOTrainer, in micro-batches, by its own methods and in its own order."""
    trainer = _online_dpo_trainer(settings, folder)
    steps.ready()
    prompts = [[{"role": "user", "content": text}] for text in settings["prompts"]]
    if trainer.processing_class.chat_template is None:
        prompts = settings["prompts"]
    for _ in range(settings["steps"]):
        steps.begin()
        pairs = 0
        tokens = 0
        for start in range(0, len(prompts), settings["peer_prompts"]):
            margins, sampled_tokens = _micro_batch(trainer, prompts[start : start + settings["peer_prompts"]])
            pairs += len(margins)
            tokens += sampled_tokens
        steps.end(pairs=pairs, tokens=tokens)


def _micro_batch(trainer: Any, prompts: Sequence[Any]) -> tuple[torch.Tensor, int]:
    """Does the part of TRL's training step before the loss, without the policy's own log-probs."""
    trainer.model.train()
    prompt_ids, prompt_mask, ids, mask, _ = trainer._generate(trainer.model, list(prompts))
    with torch.no_grad(), trainer.model.disable_adapter():
        reference = trainer._forward(trainer.model, prompt_ids, prompt_mask, ids, mask)
    texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
    rewards = trainer._calculate_rewards_from_functions(
        prompts=[*prompts, *prompts], completions=texts, completion_ids_list=ids.tolist()
    )
    first, second = rewards.split(len(prompts))
    sums = (reference * mask).sum(1).split(len(prompts))
    return torch.where(first >= second, sums[0] - sums[1], sums[1] - sums[0]), int(mask.sum())


def _online_dpo_trainer(settings: dict[str, Any], folder: Path) -> Any:
    from datasets import Dataset
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    from lit_align.policy.load import load_model, load_tokenizer
    from lit_align.policy.spec import PolicySpec

    spec = PolicySpec(settings["model"], dtype=settings["dtype"])

    def rule(completions: list[str], **_: Any) -> list[float | None]:
        return [words_and_letters(text) for text in completions]

    config = OnlineDPOConfig(
        **trl_plain(folder),
        max_steps=1,
        per_device_train_batch_size=settings["peer_prompts"],
        max_new_tokens=settings["new_tokens"],
        max_length=4096,
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        top_k=0,
        generation_kwargs={"min_new_tokens": 1},  # as in lit-align
    )
    return OnlineDPOTrainer(
        model=load_model(spec),
        reward_funcs=rule,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in settings["prompts"]]),
        processing_class=load_tokenizer(spec),
        peft_config=trl_lora(settings["rank"]),
    )
