"""Whether a run can go on from a data module's state."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.console import note
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
    """Whether a step that had begun can be taken up in its middle; what differs is said.

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
    before = state["settings"]
    if before["seed"] != settings["seed"]:
        rank_zero_warn(
            f"the checkpoint was made with seed {before['seed']}, now {settings['seed']}: the run goes on, but not as "
            "before"
        )
    same_batches = all(before.get(key) == settings.get(key) for key in ("batch_size", "batch_tokens", "world_size"))
    if not same_batches:
        _say_what_becomes_of_steps(before, settings)
    return same_batches and before["seed"] == settings["seed"]


def _say_what_becomes_of_steps(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    change = f"The checkpoint was made by {_step(before)}, and the run goes on with {_step(now)}"
    if _pairs_a_step(before) == _pairs_a_step(now):
        note(f"{change}: its steps hold the same pairs, and all but rounding and dropout is as before.")
        return
    rank_zero_warn(
        f"{change}: no pair of a pass is left out or taken twice, but the steps are others, and so may be the "
        f"decisions. With {_pairs_a_step(before)} pairs a step (devices x batch_size x accumulate_grad_batches) the "
        "run would go on as before"
    )


def _step(settings: Mapping[str, Any]) -> str:
    processes, pairs, micro_batches = (settings[key] for key in ("world_size", "batch_size", "accumulation"))
    processes_of = "1 process" if processes == 1 else f"{processes} processes"
    accumulated = "" if micro_batches == 1 else f" x {micro_batches} micro-batches"
    return f"{processes_of} x {pairs} pairs{accumulated}"


def _pairs_a_step(settings: Mapping[str, Any]) -> int:
    return int(settings["world_size"] * settings["batch_size"] * settings["accumulation"])
