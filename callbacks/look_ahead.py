"""Tries both sources and takes the better one. The boundary score is a cheap estimate of this comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lit_align.boundary import BoundaryCallback, MeasurementOutcome, Sides
from lit_align.records import CandidateSet
from lit_align.training.look_ahead import LookAhead, Weights, looking_ahead


class LookAheadBoundary(BoundaryCallback):
    """Trains a few steps on each source, lets the judge compare the two policies, and undoes the training.

    Both policies answer the same held-out prompts with the same random numbers. The score is the share of votes that
    the policy trained on on-policy pairs wins: above 0.5 on-policy pairs improved the policy more, at the same number
    of pairs. Interval, hysteresis, patience and records are those of the boundary score; in the records `on_policy`
    and `off_policy` mean the two trained policies. Both trainings start from the run's weights, optimizer and data,
    and leave them unchanged.

    Each measurement costs `look_ahead_steps` of training on each source and the on-policy rounds for one of them. In
    return the held-out prompts need no static answers. It works on one device or under DDP.

    ```yaml
    boundary:
      class_path: callbacks.LookAheadBoundary
      init_args: {look_ahead_steps: 10, every_n_steps: 50, max_prompts: 128}
    ```

    Args:
        look_ahead_steps: optimizer steps on each source, at least 1.
        num_candidates: answers per prompt from each policy.
        kwargs: further arguments of BoundaryCallback.
    """

    sides = ("the policy trained on its own answers", "the policy trained on static pairs")

    def __init__(self, look_ahead_steps: int = 10, num_candidates: int = 1, **kwargs: Any) -> None:
        super().__init__(num_candidates=num_candidates, **kwargs)
        if look_ahead_steps < 1:
            raise ValueError(f"look_ahead_steps must be at least 1 optimizer step, got {look_ahead_steps}")
        self.look_ahead_steps = look_ahead_steps
        self._ahead: LookAhead | None = None
        self._trained: tuple[Weights, Weights] | None = None

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> MeasurementOutcome:
        """Trains on both sources, then measures the two trained policies against each other."""
        with looking_ahead(trainer, pl_module) as ahead:
            off, on = (ahead.train(share, self.look_ahead_steps) for share in (0.0, 1.0))
            self._ahead = ahead
            self._trained = (on, off)
            try:
                return super().measure(trainer, pl_module)
            finally:
                self._ahead = self._trained = None

    def both_sides(self, trainer: Trainer, static: Sequence[CandidateSet], *purpose: str | int, desc: str) -> Sides:
        """Samples answers from both trained policies."""
        assert self._ahead is not None and self._trained is not None
        answers = []
        for weights in self._trained:
            self._ahead.use(weights)
            answers.append(self.sample(trainer, static, *purpose, desc=desc))
        return Sides(*answers)  # none of them is fresh: the run's own policy is another one
