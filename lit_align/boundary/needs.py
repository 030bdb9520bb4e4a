"""What a schedule asks of the data, said before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lit_align.data.datamodule import AlignmentDataModule

_MANY_STEPS = 100_000


def require_parts(data: AlignmentDataModule, schedule: str, measures: bool) -> None:
    """Raises a ValueError that names all that a schedule asks for and the data module was not given.

    Args:
        data: the data module, before its rows are read.
        schedule: the name of the schedule.
        measures: whether it measures the score; otherwise it only trains on sampled answers.
    """
    missing = [f"`data.{key}`" for key in ("sampler", "judge") if getattr(data, key) is None]
    if measures and data.val is None and not data.val_fraction:
        missing.append("`data.val` (or `data.val_fraction`)")
    if missing:
        does = "samples answers to held-out prompts and has them judged" if measures else "trains on judged samples"
        raise ValueError(f"{schedule} {does}, and the data lack what it takes: set {', '.join(missing)}")


def require_held_out(data: AlignmentDataModule, schedule: str) -> None:
    """Raises a ValueError if no held-out prompt is left to measure on, once the data are read."""
    if any(candidates.candidates for candidates in data.held_out_prompts.measured_on):
        return
    counts = [f"{key}: {count}" for key, count in data.counts.items() if key.startswith("val/") and count]
    raise ValueError(
        f"{schedule} measures on held-out prompts with static candidates, and none of the data's is left "
        f"({', '.join(counts)}): look at limits and rows"
    )


def may_ask_for_samples(should_decide: Callable[[int], bool], decide: Callable[..., Any], max_steps: int) -> bool:
    """Whether a schedule without measurements can train on samples: it does at once, or it decides again later."""
    steps = range(1, max_steps if max_steps > 0 else _MANY_STEPS)
    if any(should_decide(step) for step in steps):
        return True
    return should_decide(0) and decide(0, None, ()).share > 0
