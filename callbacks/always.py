"""Only one source for the whole run, to compare schedules with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision


class AlwaysOffPolicy(BoundaryCallback):
    """Trains only on off-policy pairs: plain offline preference optimisation.

    ```yaml
    boundary:
      class_path: callbacks.AlwaysOffPolicy
      init_args: {every_n_steps: 50, max_prompts: 64}  # only recorded; leave both out to save the measurements
    ```

    Args:
        every_n_steps: optimizer steps between measurements, which are only recorded; None never measures.
        kwargs: further arguments of BoundaryCallback.
    """

    always = 0.0

    def __init__(self, every_n_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(every_n_steps, **kwargs)

    def should_decide(self, step: int) -> bool:
        """Decides at the start, and with each measurement."""
        return step == 0 or self.should_measure(step)

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """Chooses the same share every time."""
        return Choice(self.always, type(self).__name__)


class AlwaysOnPolicy(AlwaysOffPolicy):
    """Trains only on on-policy pairs: plain online preference optimisation. Same arguments as AlwaysOffPolicy."""

    always = 1.0
