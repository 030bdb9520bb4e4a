"""Both sources in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision


class Alternating(BoundaryCallback):
    """Off-policy pairs for some steps, then on-policy pairs for as many, and so on.

    ```yaml
    boundary:
      class_path: callbacks.alternating.Alternating
      init_args: {period: 20}
    ```

    Args:
        period: optimizer steps that each turn takes, at least 1.
        every_n_steps: optimizer steps between measurements, for the record alone; None measures never.
        kwargs: as BoundaryCallback's.
    """

    def __init__(self, period: int, every_n_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(every_n_steps, **kwargs)
        if period < 1:
            raise ValueError(f"period must be at least 1 optimizer step, got {period}")
        self.period = period

    def should_decide(self, step: int) -> bool:
        """At each turn, and with each measurement."""
        return step % self.period == 0 or self.should_measure(step)

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """The share by the number of turns so far: even off-policy, odd on-policy."""
        turn = step // self.period
        return Choice(float(turn % 2), f"turn {turn + 1} of {self.period} steps")
