"""The paper's switch, measured often near the boundary and rarely far from it."""

from __future__ import annotations

from typing import Any

from lit_align.boundary import BoundaryCallback


class AdaptiveInterval(BoundaryCallback):
    """Stretches the time to the next measurement with the score's distance from 0.5.

    After a score of 0.5 the next measurement comes `every_n_steps` later. At a distance of `near` from 0.5 the time
    is twice as long, and so on in proportion, up to `max_stretch` times as long.

    ```yaml
    boundary:
      class_path: callbacks.AdaptiveInterval
      init_args: {every_n_steps: 10, max_prompts: 64, near: 0.05}
    ```

    Args:
        every_n_steps: optimizer steps to the next measurement at a score of 0.5.
        near: the distance from 0.5 that doubles this time, above 0.
        max_stretch: the largest multiple of this time, at least 1.
        kwargs: further arguments of BoundaryCallback.
    """

    def __init__(self, every_n_steps: int = 10, near: float = 0.05, max_stretch: float = 8.0, **kwargs: Any) -> None:
        super().__init__(every_n_steps, **kwargs)
        if near <= 0 or max_stretch < 1:
            raise ValueError(f"near must be above 0 and max_stretch at least 1, got {near} and {max_stretch}")
        self.shortest = every_n_steps
        self.near = near
        self.max_stretch = max_stretch

    def should_measure(self, step: int) -> bool:
        """Measures once the steps that follow from the last score have passed."""
        last = next((decision for decision in reversed(self.history) if decision.score is not None), None)
        if last is None or last.score is None:
            return True
        stretch = min(self.max_stretch, 1 + abs(last.score - self.threshold) / self.near)
        return step >= last.step + round(self.shortest * stretch)
