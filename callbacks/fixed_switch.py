"""A switch at a fixed step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision


class FixedSwitch(BoundaryCallback):
    """Trains on off-policy pairs before a given step and on on-policy pairs from then on, whatever the score.

    With `on_policy_first` it is the other way round.

    ```yaml
    boundary:
      class_path: callbacks.FixedSwitch
      init_args: {at_step: 100}
    ```

    Args:
        at_step: the number of optimizer steps before the switch.
        every_n_steps: optimizer steps between measurements, which are only recorded; None never measures.
        on_policy_first: on-policy pairs come before the switch, off-policy pairs after it.
        kwargs: further arguments of BoundaryCallback.
    """

    def __init__(
        self, at_step: int, every_n_steps: int | None = None, on_policy_first: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(every_n_steps, **kwargs)
        self.at_step = at_step
        self.on_policy_first = on_policy_first

    def should_decide(self, step: int) -> bool:
        """Decides at the start, at the switch, and with each measurement."""
        return step in (0, self.at_step) or self.should_measure(step)

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """Chooses the source by the step only."""
        return Choice(float((step >= self.at_step) != self.on_policy_first), f"fixed switch at step {self.at_step}")
