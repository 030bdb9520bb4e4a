"""One source throughout: the arms to compare a schedule with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision


class AlwaysOffPolicy(BoundaryCallback):
    """Off-policy pairs throughout: plain offline preference optimisation.

    ```yaml
    boundary:
      class_path: callbacks.always.AlwaysOffPolicy
      init_args: {every_n_steps: 50, max_prompts: 64}  # measured for the record; leave both out to spare it
    ```

    Args:
        every_n_steps: optimizer steps between measurements, for the record alone; None measures never.
        kwargs: as BoundaryCallback's.
    """

    always = 0.0

    def __init__(self, every_n_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(every_n_steps, **kwargs)

    def should_decide(self, step: int) -> bool:
        """At the start, and with each measurement."""
        return step == 0 or self.should_measure(step)

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """Always the same share."""
        return Choice(self.always, type(self).__name__)


class AlwaysOnPolicy(AlwaysOffPolicy):
    """On-policy pairs throughout: plain online preference optimisation. Takes what AlwaysOffPolicy takes."""

    always = 1.0
