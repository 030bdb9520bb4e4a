"""The place of a fit within its epoch, counted anew for a run that goes on with other batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUNTERS = ("ready", "started", "processed", "completed")


def count_anew(fit_loop: dict[str, Any], before: Mapping[str, int], now: Mapping[str, int], epoch_batches: int) -> None:
    """Sets the micro-batches that a checkpoint says are done to those that hold as many pairs.

    Lightning counts micro-batches. On half as many processes an epoch has twice as many of them, and its end would
    come too early or too late.

    Args:
        fit_loop: the state of Lightning's fit loop at the end of an optimizer step, which is changed.
        before: `world_size`, `batch_size` and `accumulation` of the run that wrote it.
        now: the same of the run that goes on.
        epoch_batches: micro-batches of an epoch now.
    """
    if _of_all_ranks(before) == _of_all_ranks(now):
        return
    progress = fit_loop["epoch_loop.batch_progress"]
    for counted in ("current", "total"):
        done = progress[counted]["ready"]
        anew = _as_many_pairs(done, before, now)
        if counted == "current" and progress["is_last_batch"]:
            anew = epoch_batches
        for name in _COUNTERS:
            progress[counted][name] += anew - done


def _as_many_pairs(micro_batches: int, before: Mapping[str, int], now: Mapping[str, int]) -> int:
    """Of whole optimizer steps, and no more pairs than were given: none is left out."""
    pairs = micro_batches * _of_all_ranks(before)
    return pairs // (_of_all_ranks(now) * now["accumulation"]) * now["accumulation"]


def _of_all_ranks(settings: Mapping[str, int]) -> int:
    """Pairs of a micro-batch on all ranks together."""
    return settings["world_size"] * settings["batch_size"]
