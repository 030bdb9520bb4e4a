"""Static candidates that nobody wrote: samples of the base model and of a model that was taught right answers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng

from experiments.setup import Setup
from lit_align import AlignmentDataModule, AlignmentModule, AlignmentTrainer, LoraSpec, PolicySpec, RuleJudge
from lit_align.losses import NLL
from lit_align.records import prompt_text
from lit_align.run_parts import datamodule_of
from lit_align.sampling import TransformersSampler

Rows = list[dict[str, Any]]
TEACHING_STEPS = 60
TEMPERATURES = (0.7, 1.2)
"""Of the base model and of the taught one alike, one candidate each."""


class SampleBothModels(Callback):
    """Samples answers to the held-out prompts before and after a training.

    Args:
        sampler: the data module's, whose temperature is set for each sampling.
    """

    def __init__(self, sampler: TransformersSampler) -> None:
        self.sampler = sampler
        self.answers: dict[str, list[str]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sample(trainer, "base")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sample(trainer, "taught")

    def _sample(self, trainer: Trainer, name: str) -> None:
        data: AlignmentDataModule = datamodule_of(trainer)
        for temperature in TEMPERATURES:
            self.sampler.temperature = temperature
            with isolate_rng():
                sets = data.sample(data.held_out, "static", name, f"{temperature:g}", num_candidates=1)
            for sampled in sets:
                self.answers.setdefault(prompt_text(sampled.prompt), []).append(sampled.candidates[0].text)


def with_candidates(teaching: Rows, open_rows: Sequence[Rows], rule: str, setup: Setup) -> list[Rows]:
    """Adds four candidates to each row: two of the base model, two of one trained on right answers to other prompts.

    Args:
        teaching: rows with a right answer as `chosen`, of prompts that are in no other row.
        open_rows: several lists of rows without candidates.
        rule: import path of the rule that judges, which here only lets rows be read without candidates.
        setup: model, adapters and sampling.

    Returns:
        The rows with their candidates, each list by itself; rows whose candidates are all the same are left out.
    """
    seed_everything(0, verbose=False)
    everything = [row for rows in open_rows for row in rows]

    sampler = TransformersSampler(
        2, top_p=setup.top_p, max_new_tokens=setup.max_new_tokens, batch_size=setup.sampling_batch
    )
    sampling = SampleBothModels(sampler)
    data = AlignmentDataModule(
        teaching, everything, batch_size=setup.batch_size, judge=RuleJudge(rule), sampler=sampler,
        boundary_fraction=0.0, reference_cache=None,
    )  # fmt: skip
    module = AlignmentModule(
        PolicySpec(setup.model, dtype=setup.dtype, lora=LoraSpec(r=setup.lora_rank, alpha=2 * setup.lora_rank)),  # type: ignore[arg-type]
        NLL(),
        optimizer=lambda params: torch.optim.AdamW(params, lr=setup.learning_rates["rpo"], weight_decay=0.0),
    )
    with tempfile.TemporaryDirectory() as folder:
        AlignmentTrainer(
            default_root_dir=folder, max_steps=TEACHING_STEPS, accelerator="auto", devices=1, limit_val_batches=0,
            callbacks=[sampling], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ).fit(module, datamodule=data)  # fmt: skip
    return [_filled(rows, sampling.answers) for rows in open_rows]


def _filled(rows: Rows, answers: dict[str, list[str]]) -> Rows:
    filled = []
    for row in rows:
        distinct = list(dict.fromkeys(answers[row["prompt"]]))
        if len(distinct) > 1:
            filled.append({**row, "candidates": [{"text": text} for text in distinct]})
    return filled
