"""A smooth mixture of both sources in place of a hard switch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_align.boundary import BoundaryCallback, BoundaryResult, Decision
from lit_align.judges import Judge


class MixtureBoundary(BoundaryCallback):
    """Lets the on-policy share follow the score along a logistic curve: half and half at 0.5.

    ```yaml
    boundary:
      class_path: callbacks.mixture.MixtureBoundary
      init_args: {every_n_steps: 20, max_prompts: 64, width: 0.05}
    ```

    Args:
        width: how far from 0.5 the curve bends; at 0.5 + 2 * width the share is 0.88. Above 0.
        every_n_steps: optimizer steps between measurements.
        max_prompts: held-out prompts a measurement.
        num_candidates: answers sampled for each prompt; None takes the sampler's own number.
        judge: stands for the true preference; None takes the data module's.
    """

    def __init__(
        self,
        width: float = 0.05,
        every_n_steps: int = 50,
        max_prompts: int = 2000,
        num_candidates: int | None = None,
        judge: Judge | None = None,
    ) -> None:
        super().__init__(every_n_steps, max_prompts, num_candidates, judge)
        if width <= 0:
            raise ValueError(f"width must be above 0, got {width}; for a hard switch take BoundaryCallback")
        self.width = width

    def on_policy_share(self, result: BoundaryResult, history: Sequence[Decision]) -> float:
        """1 / (1 + exp(-(score - 0.5) / width))."""
        return 0.5 * (1 + math.tanh((result.score - 0.5) / (2 * self.width)))
