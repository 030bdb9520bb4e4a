"""A smooth mixture of both sources instead of a hard switch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Decision


class MixtureBoundary(BoundaryCallback):
    """Makes the on-policy share a logistic function of the score, flatter the less certain the score is.

    The share is the average of 1 / (1 + exp(-(score - 0.5) / width)) if the true score is distributed around the
    measured one with a quarter of its interval as standard deviation (MacKay's approximation, "The evidence framework
    applied to classification networks", Neural Computation 4, 1992). It is 0.5 at a score of 0.5.
    A sequential test stops as soon as 0.5 is outside the interval, so its scores are barely certain and all shares
    near 0.5. `sequential: false` gives more certain scores, at `max_prompts` prompts per measurement.

    ```yaml
    boundary:
      class_path: callbacks.MixtureBoundary
      init_args: {every_n_steps: 20, max_prompts: 64, sequential: false, width: 0.05}
    ```

    Args:
        width: the scale of the curve, above 0; a certain score of 0.5 + 2 * width gives a share of 0.88.
        kwargs: further arguments of BoundaryCallback.
    """

    def __init__(self, width: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if width <= 0:
            raise ValueError(f"width must be above 0, got {width}; for a hard switch take BoundaryCallback")
        self.width = width

    def on_policy_share(self, result: BoundaryResult, history: Sequence[Decision]) -> float:
        """Applies the logistic curve, flattened by the width of the interval."""
        spread = (result.high - result.low) / 4
        width = math.sqrt(self.width**2 + math.pi / 8 * spread**2)
        return 0.5 * (1 + math.tanh((result.score - result.threshold) / (2 * width)))
