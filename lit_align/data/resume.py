"""Whether a run can go on from a data module's state."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.training.sharded_files import read_values


def parse_date(text: str) -> datetime:
    """A day, or a day and the time of it.

    Raises:
        ValueError: it is none.
    """
    try:
        return datetime.fromisoformat(str(text))
    except ValueError as error:
        raise ValueError(f"expected `date` as 2026-11-29 or 2026-11-29 08:00:00, got {text!r}") from error


def saved_start(checkpoint: str | Path | None, name: str) -> datetime | None:
    """When the run of a checkpoint began; None if there is no such file, or if it does not say.

    Args:
        checkpoint: its path. No weights are read.
        name: the data module's, under which its state is kept.

    Raises:
        ValueError: no run wrote the file.
    """
    if checkpoint is None or not Path(checkpoint).exists():
        return None
    try:
        content = read_values(Path(checkpoint))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"The checkpoint {checkpoint} holds more than tensors and plain values, which could run code when it is "
            "loaded: take a file of a run's checkpoints folder."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"The checkpoint {checkpoint} was not written by a run: it holds a {type(content).__name__}.")
    state = content.get(name, {})
    return datetime.fromisoformat(state["start"]) if "start" in state else None


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
