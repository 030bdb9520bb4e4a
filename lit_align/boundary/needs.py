"""The needs of a schedule, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable

from lit_align.boundary.switch import Choice
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


def require_decisions(should_decide: Callable[[int], bool], max_steps: int, schedule: str) -> None:
    """Raises a ValueError if a schedule decides at no step, and so would never train on sampled answers."""
    if not any(map(should_decide, _steps(max_steps, first=0))):
        raise ValueError(
            f"{schedule} decides at no step: set every_n_steps to at least 1, or give the schedule a should_decide()"
        )


def may_ask_for_samples(
    should_decide: Callable[[int], bool], decide: Callable[..., Choice | None], max_steps: int
) -> bool:
    """Whether a schedule without measurements can train on samples: it does at once, or it decides again later."""
    if any(map(should_decide, _steps(max_steps, first=1))):
        return True
    choice = decide(0, None, ()) if should_decide(0) else None
    return choice is not None and choice.share > 0


def _steps(max_steps: int, first: int) -> range:
    """The optimizer steps of a run; without a limit of steps, many."""
    return range(first, max_steps if max_steps > 0 else _MANY_STEPS)
