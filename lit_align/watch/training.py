"""Alarms from the metrics of training steps. `docs/watch.md` has where the thresholds come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, sqrt
from statistics import fmean, variance

from lit_align.watch.alarm import Alarm

WINDOW = 20
"""Optimizer steps over which a mean is taken."""
FALL = 0.5
"""Share of their size by which chosen log-probs fall before it is said."""
LEAST_FALL = 20.0
"""The same in nats, for short answers."""
STANDARD_ERRORS = 4.0
"""How clearly a mean must differ from an earlier one."""
RANKED_RIGHT = 0.99
"""Reward accuracy of saturated rewards."""
MARGIN = 10.0
"""Reward margin of saturated rewards: a sigmoid loss then has a gradient of a 10,000th of its first."""


@dataclass
class Series:
    """The first and the last values of a metric.

    Args:
        first: up to :data:`WINDOW` values.
        last: up to as many, the newest at the end.
        count: how many there were.
    """

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, value: float) -> None:
        """Takes the value of another step."""
        if self.count < WINDOW:
            self.first.append(value)
        self.last = [*self.last, value][-WINDOW:]
        self.count += 1

    @property
    def is_full(self) -> bool:
        """Whether there are enough values for a mean of the last ones."""
        return self.count >= WINDOW

    @property
    def is_comparable(self) -> bool:
        """Whether the first and the last values are different ones."""
        return self.count >= 2 * WINDOW


def find_displacement(
    chosen_before: Sequence[float],
    chosen_now: Sequence[float],
    rejected_before: Sequence[float],
    rejected_now: Sequence[float],
) -> Alarm | None:
    """Likelihood displacement: the chosen answers' log-probs fall far, together with those of the rejected ones.

    Args:
        chosen_before: mean log-probs of chosen answers in nats, of some steps or of one set of held-out pairs.
        chosen_now: the same, later.
        rejected_before: of the rejected answers.
        rejected_now: the same, later.
    """
    before = fmean(chosen_before)
    now = fmean(chosen_now)
    far = before - now >= max(LEAST_FALL, FALL * abs(before))
    if not far or fmean(rejected_now) >= fmean(rejected_before) or not _clearly(chosen_before, chosen_now):
        return None
    return Alarm(
        "displacement",
        f"The log-probs of the chosen answers fell from {before:.0f} to {now:.0f} nats, with those of the rejected "
        f"ones ({fmean(rejected_before):.0f} to {fmean(rejected_now):.0f}): the policy moves away from both "
        "(likelihood displacement).",
        "Read its answers. A loss that also raises the chosen ones helps (RPO, or a sum with NLL), and so do a lower "
        "learning rate, a larger beta, and pairs that differ more.",
    )


def find_saturation(accuracies: Sequence[float], margins: Sequence[float]) -> Alarm | None:
    """Saturated rewards: all pairs are ranked right, by so much that a sigmoid loss has no gradient left.

    Args:
        accuracies: reward accuracies of the last steps, in [0, 1].
        margins: their reward margins.
    """
    if fmean(accuracies) < RANKED_RIGHT or fmean(margins) < MARGIN:
        return None
    return Alarm(
        "saturation",
        f"All pairs of the last {len(margins)} steps are ranked right, by a margin of {fmean(margins):.0f}: the "
        "rewards are saturated, and further steps on such pairs teach next to nothing.",
        "End the run earlier or take an earlier checkpoint. Fewer passes over the pairs, a lower learning rate or a "
        "larger beta keep the policy nearer to its reference; harder pairs still teach it.",
    )


def find_drift(kl: Sequence[float], limit: float) -> Alarm | None:
    """The policy is far from its reference.

    Args:
        kl: distances of the last steps in nats an answer.
        limit: the largest mean that is not said.
    """
    if fmean(kl) <= limit:
        return None
    return Alarm(
        "kl",
        f"The policy is {fmean(kl):.0f} nats an answer from its reference (KL), which is beyond the limit of "
        f"{limit:g} (RunWatch's max_kl).",
        "Read its answers: far from the reference a judge is easily deceived. A larger beta, a lower learning rate or "
        "an earlier checkpoint bring it nearer.",
    )


def _clearly(before: Sequence[float], now: Sequence[float]) -> bool:
    """Whether the means differ by more than the steps do by chance; a single value each is that of the same pairs."""
    if len(before) < 2 or len(now) < 2:
        return True
    error = sqrt(variance(before) / len(before) + variance(now) / len(now))
    difference = abs(fmean(before) - fmean(now))
    return (difference / error if error else inf) > STANDARD_ERRORS
