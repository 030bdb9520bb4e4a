"""Whether a run can go on from a data module's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn


def goes_on_alike(state: Mapping[str, Any], fingerprint: str, settings: Mapping[str, Any]) -> bool:
    """Whether what follows is what would have followed; a warning says what differs.

    Args:
        state: from a checkpoint, with its own `fingerprint` and `settings`.
        fingerprint: of the training data as they are now.
        settings: those that the order of pairs depends on, as they are now.

    Raises:
        ValueError: if the training data are others.
    """
    if state["fingerprint"] != fingerprint:
        raise ValueError(
            f"the checkpoint was made with other data: expected {state['fingerprint']}, got {fingerprint}. "
            "Give the same rows, tokenizer, limits, selector and judge, or start a fresh run"
        )
    changed = {key: (state["settings"].get(key), now) for key, now in settings.items()}
    changed = {key: (before, now) for key, (before, now) in changed.items() if before != now}
    for key, (before, now) in changed.items():
        rank_zero_warn(f"the checkpoint was made with {key} {before}, now {now}: the run goes on, but not as before")
    return not changed
