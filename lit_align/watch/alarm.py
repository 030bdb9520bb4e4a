"""What the watch says of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """Something in the numbers of a run that a person should look at.

    Args:
        name: of the kind, such as "displacement"; each is said once a run.
        text: what was seen, with its numbers.
        advice: what to do.
        step: the optimizer step at which it was seen.
    """

    name: str
    text: str
    advice: str
    step: int = 0
