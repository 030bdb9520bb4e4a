"""TRL's DPOTrainer at its best on the same tokens, to compare a step with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lit_align.doctor.models import Pair, byte_tokenizer

BETA = 0.1


def trl_trainer(
    model: Any,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    steps: int,
    rank: int | None,
    learning_rate: float,
    precompute: bool = True,
    folder: Path,
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> Any:
    """Makes TRL's DPOTrainer for the same tokens in the same order, without any work that lit-align does not do.

    No gradient checkpointing, no gradient clipping, no logging, no truncation. Its fused LM head is always on.
    `step_losses` has the losses of its steps.

    Args:
        model: a model of transformers, in the precision to train in.
        pairs: pairs of token ids.
        batch_size: pairs of a step.
        steps: steps to train.
        rank: of LoRA on all linear layers; None trains all weights.
        learning_rate: constant.
        precompute: compute the reference's log-probs before the first step.
        folder: where TRL may write.
        callbacks: of transformers' Trainer.
        settings: further arguments of DPOConfig.
    """
    from datasets import Dataset
    from trl import DPOConfig

    options = {
        **trl_plain(folder),
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "train_sampling_strategy": "sequential",
        "precompute_ref_log_probs": precompute,
        "max_length": None,
        "dataloader_pin_memory": False,
        **settings,
    }
    return _tokenised_dpo_trainer()(
        model=model,
        args=DPOConfig(**options),
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=byte_tokenizer(),
        callbacks=list(callbacks),
        peft_config=None if rank is None else trl_lora(rank),
    )


def trl_plain(folder: Path) -> dict[str, Any]:
    """Settings of all TRL trainers: they switch off what costs time and lit-align does not do."""
    return {
        "output_dir": str(folder),
        "beta": BETA,
        "gradient_checkpointing": False,
        "bf16": False,  # no autocast: the weights have the precision of `dtype`, as in lit-align
        "use_cpu": not torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def trl_lora(rank: int) -> Any:
    """Makes the config of adapters of scale 2 on all linear layers."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _tokenised_dpo_trainer() -> Any:
    """A subclass of TRL's DPOTrainer that takes token ids and records the loss of each step."""
    from trl import DPOTrainer

    class TokenisedDPOTrainer(DPOTrainer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.step_losses: list[float] = []

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # the pairs are token ids already

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.step_losses.append(loss.item())
            return loss

    return TokenisedDPOTrainer
