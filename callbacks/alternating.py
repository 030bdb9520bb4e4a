"""Alternates between both sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision


class Alternating(BoundaryCallback):
    """Trains on off-policy pairs for `period` steps, then on on-policy pairs for as many, and so on.

    ```yaml
    boundary:
      class_path: callbacks.Alternating
      init_args: {period: 20}
    ```

    Args:
        period: optimizer steps before the source changes, at least 1.
        every_n_steps: optimizer steps between measurements, which are only recorded; None never measures.
        kwargs: further arguments of BoundaryCallback.
    """

    def __init__(self, period: int, every_n_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(every_n_steps, **kwargs)
        if period < 1:
            raise ValueError(f"period must be at least 1 optimizer step, got {period}")
        self.period = period

    def should_decide(self, step: int) -> bool:
        """Decides at each change of the source, and with each measurement."""
        return step % self.period == 0 or self.should_measure(step)

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """Chooses off-policy pairs in the first period, on-policy pairs in the second, and so on."""
        turn = step // self.period
        return Choice(float(turn % 2), f"turn {turn + 1} of {self.period} steps")
