"""A smooth mixture of both sources in place of a hard switch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Decision


class MixtureBoundary(BoundaryCallback):
    """Lets the on-policy share follow the score along a logistic curve, the more gently the less sure the score is.

    The share is what 1 / (1 + exp(-(score - 0.5) / width)) comes to on average if the true score is spread
    around the measured one with a quarter of its interval as standard deviation (MacKay's approximation, "The
    evidence framework applied to classification networks", Neural Computation 4, 1992). It is half at 0.5.
    A stop as soon as 0.5 is outside the interval leaves every score barely sure, and so every share near the
    middle; `sequential: false` buys surer ones with `max_prompts` prompts each time.

    ```yaml
    boundary:
      class_path: callbacks.mixture.MixtureBoundary
      init_args: {every_n_steps: 20, max_prompts: 64, sequential: false, width: 0.05}
    ```

    Args:
        width: how far from 0.5 the curve bends; a sure score of 0.5 + 2 * width gives 0.88. Above 0.
        kwargs: as BoundaryCallback's.
    """

    def __init__(self, width: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if width <= 0:
            raise ValueError(f"width must be above 0, got {width}; for a hard switch take BoundaryCallback")
        self.width = width

    def on_policy_share(self, result: BoundaryResult, history: Sequence[Decision]) -> float:
        """The logistic curve, flattened by the interval."""
        spread = (result.high - result.low) / 4
        width = math.sqrt(self.width**2 + math.pi / 8 * spread**2)
        return 0.5 * (1 + math.tanh((result.score - 0.5) / (2 * width)))
