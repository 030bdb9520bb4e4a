"""A switch at a step that was set beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision


class FixedSwitch(BoundaryCallback):
    """Off-policy pairs before a step, on-policy pairs from it on, whatever the score.

    ```yaml
    boundary:
      class_path: callbacks.fixed_switch.FixedSwitch
      init_args: {at_step: 100}
    ```

    Args:
        at_step: the optimizer step after which on-policy pairs are used.
        every_n_steps: optimizer steps between measurements, for the record alone; None measures never.
        kwargs: as BoundaryCallback's.
    """

    def __init__(self, at_step: int, every_n_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(every_n_steps, **kwargs)
        self.at_step = at_step

    def should_decide(self, step: int) -> bool:
        """At the start, at the switch, and with each measurement."""
        return step in (0, self.at_step) or self.should_measure(step)

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """The share by the step alone."""
        return Choice(float(step >= self.at_step), f"fixed switch at step {self.at_step}")
