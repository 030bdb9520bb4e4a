"""A switch at a fixed step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision


class FixedSwitch(BoundaryCallback):
    """Trains on off-policy pairs before a given step and on on-policy pairs from then on, whatever the score.

    ```yaml
    boundary:
      class_path: callbacks.FixedSwitch
      init_args: {at_step: 100}
    ```

    Args:
        at_step: the number of optimizer steps on off-policy pairs.
        every_n_steps: optimizer steps between measurements, which are only recorded; None never measures.
        kwargs: further arguments of BoundaryCallback.
    """

    def __init__(self, at_step: int, every_n_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(every_n_steps, **kwargs)
        self.at_step = at_step

    def should_decide(self, step: int) -> bool:
        """Decides at the start, at the switch, and with each measurement."""
        return step in (0, self.at_step) or self.should_measure(step)

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """Chooses the source by the step only."""
        return Choice(float(step >= self.at_step), f"fixed switch at step {self.at_step}")
