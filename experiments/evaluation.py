"""What a run has gained by a step, and the time it took."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lit_align import AlignmentDataModule
from lit_align.run_parts import datamodule_of


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
