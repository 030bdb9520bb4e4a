"""The paper's switch, measured often near the boundary and seldom far from it."""

from __future__ import annotations

from typing import Any

from lit_align.boundary import BoundaryCallback


class AdaptiveInterval(BoundaryCallback):
    """Stretches the time to the next measurement with the score's distance from 0.5.

    After a score of 0.5 it measures again `every_n_steps` later, at a distance of `near` twice as late, and so on
    in proportion, at most `max_stretch` times as late.

    ```yaml
    boundary:
      class_path: callbacks.adaptive.AdaptiveInterval
      init_args: {every_n_steps: 10, max_prompts: 64, near: 0.05}
    ```

    Args:
        every_n_steps: optimizer steps to the next measurement at a score of 0.5.
        near: the distance from 0.5 that doubles them, above 0.
        max_stretch: how many times as many at most, at least 1.
        kwargs: as BoundaryCallback's.
    """

    def __init__(self, every_n_steps: int = 10, near: float = 0.05, max_stretch: float = 8.0, **kwargs: Any) -> None:
        super().__init__(every_n_steps, **kwargs)
        if near <= 0 or max_stretch < 1:
            raise ValueError(f"near must be above 0 and max_stretch at least 1, got {near} and {max_stretch}")
        self.shortest, self.near, self.max_stretch = every_n_steps, near, max_stretch

    def should_measure(self, step: int) -> bool:
        """Once the steps that the last score asks for have passed."""
        last = next((one for one in reversed(self.history) if one.score is not None), None)
        if last is None or last.score is None:
            return True
        stretch = min(self.max_stretch, 1 + abs(last.score - 0.5) / self.near)
        return step >= last.step + round(self.shortest * stretch)
