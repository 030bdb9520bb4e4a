"""The truth that a boundary score stands for: both sources tried, and the better one taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lit_align.boundary import BoundaryCallback, BoundaryResult
from lit_align.look_ahead import LookAhead, Weights, looking_ahead
from lit_align.records import CandidateSet


class LookAheadBoundary(BoundaryCallback):
    """Trains a few steps on either source, lets the judge compare what came out, and goes on from where it stood.

    The score is the share of votes that the answers of the policy trained on-policy win against those of the policy
    trained off-policy, to the same held-out prompts with the same random numbers: above 0.5 on-policy pairs brought
    more, at equally many pairs. Interval, hysteresis, patience and records are as for the boundary score, and
    `on_policy` and `off_policy` in them mean the two trained policies. Both trainings start with the run's weights,
    optimizer and data, and leave them as they were.

    It costs twice `look_ahead_steps` of training and the on-policy rounds of one of them, each time; in return it
    needs no static answer to a held-out prompt that tells how good the static pairs are. On one device or under DDP.

    ```yaml
    boundary:
      class_path: callbacks.look_ahead.LookAheadBoundary
      init_args: {look_ahead_steps: 10, every_n_steps: 50, max_prompts: 128}
    ```

    Args:
        look_ahead_steps: optimizer steps on each source, at least 1.
        num_candidates: answers of each policy to each prompt.
        kwargs: as BoundaryCallback's.
    """

    def __init__(self, look_ahead_steps: int = 10, num_candidates: int = 1, **kwargs: Any) -> None:
        super().__init__(num_candidates=num_candidates, **kwargs)
        if look_ahead_steps < 1:
            raise ValueError(f"look_ahead_steps must be at least 1 optimizer step, got {look_ahead_steps}")
        self.look_ahead_steps = look_ahead_steps
        self._ahead: LookAhead | None = None
        self._trained: tuple[Weights, Weights] | None = None

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> BoundaryResult:
        """Trains on both sources, then measures one trained policy against the other."""
        with looking_ahead(trainer, pl_module) as ahead:
            off, on = (ahead.train(share, self.look_ahead_steps) for share in (0.0, 1.0))
            self._ahead, self._trained = ahead, (on, off)
            try:
                return super().measure(trainer, pl_module)
            finally:
                self._ahead = self._trained = None

    def both_sides(
        self, trainer: Trainer, static: Sequence[CandidateSet], *purpose: str | int, desc: str
    ) -> tuple[Sequence[CandidateSet], Sequence[CandidateSet]]:
        """Answers of the two trained policies."""
        assert self._ahead is not None and self._trained is not None
        sides = []
        for weights in self._trained:
            self._ahead.use(weights)
            sides.append(self.sample(trainer, static, *purpose, desc=desc))
        return sides[0], sides[1]
