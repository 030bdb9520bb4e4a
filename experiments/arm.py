"""One arm: trains a policy from a starting point on one source or schedule, and records the results."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything

from callbacks import AlwaysOffPolicy
from experiments.evaluation import Evaluation
from experiments.schedules import INJECTION, LOSSES, SCHEDULES, SEMI_ONLINE
from experiments.setup import LENGTHS, VARIANTS, Setup
from experiments.tasks import SELECTORS, TASKS, files_of
from lit_align import (
    AlignmentDataModule,
    AlignmentModule,
    AlignmentTrainer,
    BoundaryCallback,
    LoraSpec,
    PolicySpec,
    RuleJudge,
    TransformersSampler,
    run_folder,
)
from lit_align.policy import AdapterOff
from lit_align.report.summary import RunSummary
from lit_align.seeding import derive_seed


@dataclass(frozen=True)
class Arm:
    """The settings in which arms differ.

    Args:
        task: one of `TASKS`.
        seed: seed of the adapters, the data and the samples.
        start: the sources of the trainings before, `fork_steps` each with `INJECTION`; empty for the base model.
        schedule: one of `SCHEDULES`; "off" and "on" stay on one source.
        loss: one of `LOSSES`.
        selector: one of `SELECTORS`; empty takes the task's.
        steps: optimizer steps.
        evaluate_every: optimizer steps between evaluations; the last step always has one.
        variant: one of `VARIANTS` or `LENGTHS`; empty for none.
    """

    task: str
    seed: int
    start: tuple[str, ...]
    schedule: str
    steps: int
    loss: str = INJECTION
    selector: str = ""
    evaluate_every: int = 0
    variant: str = ""

    @property
    def plain(self) -> bool:
        """Whether the arm is a fork of Table 1."""
        return not (self.selector or self.evaluate_every or self.variant)

    @property
    def scouts(self) -> bool:
        """Whether the arm also measures and evaluates its starting point, for all arms that start there."""
        return self.plain and self.schedule == "off" and self.loss == INJECTION

    @property
    def parent(self) -> Arm | None:
        """The arm that ends where this one starts; None for the base model."""
        if not self.start:
            return None
        *before, last = self.start
        return Arm(self.task, self.seed, tuple(before), last, self.steps)

    def __str__(self) -> str:
        start = "+".join(self.start) or "base"
        words = [self.task, f"s{self.seed}", start, self.schedule, self.loss, self.selector]
        words += ["run" if self.evaluate_every else "", self.variant]
        return "_".join(filter(None, words))


def run_arm(arm: Arm, setup: Setup, adapter: Path | None, folder: Path, save_to: Path | None) -> dict[str, Any]:
    """Trains one arm.

    Args:
        arm: the arm to train.
        setup: the settings shared with other arms.
        adapter: folder of the starting point's adapter; None for the base model.
        folder: folder for the task's files, and for the run's files while it runs.
        save_to: folder for the trained adapter; None does not save it.

    Returns:
        The record, ready for JSON.
    """
    if arm.variant:
        setup = replace(setup, **(VARIANTS | LENGTHS)[arm.variant])
    if arm.schedule in SEMI_ONLINE:
        setup = replace(setup, round_prompts=SEMI_ONLINE[arm.schedule] * setup.batch_size)
    seed_everything(arm.seed, verbose=False)
    start = time.perf_counter()
    root = folder / "running" / str(arm)
    boundary = _schedule(arm, setup)
    evaluation = Evaluation(setup.evaluation_prompts, arm.scouts, arm.evaluate_every)
    module = _module(arm, setup, adapter)
    data = _data(arm, setup, folder)
    trainer = AlignmentTrainer(
        default_root_dir=str(root), max_steps=arm.steps, accelerator="auto", devices=1, limit_val_batches=0,
        callbacks=[evaluation, boundary, RunSummary(show=False)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    if trainer.global_step != arm.steps:
        raise RuntimeError(f"{arm} ended at step {trainer.global_step} of {arm.steps}")
    if save_to is not None:
        policy: Any = module.policy
        policy.save_pretrained(save_to)
    summary = json.loads((root / run_folder.SUMMARY).read_text(encoding="utf-8"))
    samples = root / run_folder.SAMPLES
    rows = samples.read_text(encoding="utf-8").splitlines() if arm.scouts else []
    return {
        "arm": asdict(arm),
        "setup": asdict(setup),
        "evaluations": evaluation.rows,
        "decisions": [decision.record() for decision in boundary.history],
        "measured": [json.loads(row) for row in rows],
        **{key: summary[key] for key in ("rounds", "rows", "metrics", "seconds")},
        "wall_seconds": time.perf_counter() - start,
        "threads": torch.get_num_threads(),
        "device": str(trainer.strategy.root_device),
    }


def _schedule(arm: Arm, setup: Setup) -> BoundaryCallback:
    if not arm.scouts:
        schedule = SCHEDULES[arm.schedule](setup)
        schedule.samples_to_keep = 0
        return schedule
    return AlwaysOffPolicy(  # measures only at step 0, and keeps all candidates
        arm.steps + 1, max_prompts=setup.fork_prompts, num_candidates=setup.answers, sequential=False,
        samples_to_keep=setup.fork_prompts,
    )  # fmt: skip


def _module(arm: Arm, setup: Setup, adapter: Path | None) -> AlignmentModule:
    policy = PolicySpec(
        setup.model,
        dtype=setup.dtype,  # type: ignore[arg-type]
        lora=None if adapter else LoraSpec(r=setup.lora_rank, alpha=2 * setup.lora_rank),
        adapter=str(adapter) if adapter else None,
    )

    def optimizer(params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=setup.learning_rates[arm.loss], weight_decay=0.0)

    reference = None if setup.refreshed else AdapterOff()
    return AlignmentModule(policy, LOSSES[arm.loss](), reference, optimizer=optimizer)


def _data(arm: Arm, setup: Setup, folder: Path) -> AlignmentDataModule:
    task = TASKS[arm.task]
    train, held_out = files_of(arm.task, folder / "data", setup)
    return AlignmentDataModule(
        train,
        held_out,
        batch_size=setup.batch_size,
        selector=SELECTORS[arm.selector or task.selector](),
        judge=RuleJudge(task.rule),
        relabel=True,
        sampler=TransformersSampler(
            setup.answers,
            temperature=setup.temperature,
            top_p=setup.top_p,
            max_new_tokens=setup.max_new_tokens,
            batch_size=setup.sampling_batch,
        ),
        round_prompts=setup.round_prompts,
        boundary_fraction=0.4,
        reference_cache=None,  # computed in each step, so that it costs both sources the same
        seed=derive_seed(arm.seed, *arm.start),  # so that other pairs come first than in the training of the start
    )
