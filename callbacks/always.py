"""One share of on-policy pairs for the whole run: one source only, or a constant mixture of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision


class ConstantMixture(BoundaryCallback):
    """Draws each pair from the on-policy round with the same chance for the whole run.

    With the default of one half this is SimpleMix (arXiv 2505.02363, "SimpleMix: Frustratingly Simple Mixing of Off-
    and On-policy Data in Language Model Preference Learning").

    ```yaml
    boundary:
      class_path: callbacks.ConstantMixture
      init_args: {share: 0.5}
    ```

    Args:
        share: share of on-policy pairs, in [0, 1].
        every_n_steps: optimizer steps between measurements, which are only recorded; None never measures.
        kwargs: further arguments of BoundaryCallback.
    """

    def __init__(self, share: float = 0.5, every_n_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(every_n_steps, **kwargs)
        if not 0 <= share <= 1:
            raise ValueError(f"share of on-policy pairs must be in [0, 1], got {share}")
        self.share = share

    def should_decide(self, step: int) -> bool:
        """Decides at the start, and with each measurement."""
        return step == 0 or self.should_measure(step)

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """Chooses the same share every time."""
        return Choice(self.share, type(self).__name__)


class AlwaysOffPolicy(ConstantMixture):
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

    def __init__(self, every_n_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(0.0, every_n_steps, **kwargs)


class AlwaysOnPolicy(ConstantMixture):
    """Trains only on on-policy pairs: plain online preference optimisation. Same arguments as AlwaysOffPolicy.

    The pairs are made in rounds of `data.round_prompts` prompts, and the policy trains on a round before the next one
    is sampled. Rounds of a few steps are semi-online training (arXiv 2506.21495): `configs/schedules/semi_online.yaml`.
    """

    def __init__(self, every_n_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(1.0, every_n_steps, **kwargs)
