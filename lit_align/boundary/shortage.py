"""Whether there are enough prompts to decide, checked before a measurement."""

from __future__ import annotations

import math

from lit_align.boundary.power import prompts_to_decide
from lit_align.boundary.result import BOUNDARY
from lit_align.data.datamodule import AlignmentDataModule

USUAL_DISTANCE = 0.1
"""The distance of a usual score from the threshold: that of the paper's Zephyr at its start."""


def shortage(
    data: AlignmentDataModule, max_prompts: int, alpha: float, sequential: bool, threshold: float = BOUNDARY
) -> str | None:
    """How many prompts a decision takes and how to get them; None where there are as many as one usually takes.

    Args:
        data: the data module, set up.
        max_prompts: prompts that a measurement takes at most.
        alpha: the chance of error, in (0, 1).
        sequential: whether a measurement stops once it is decided.
        threshold: the score at which the two stages meet, in (0, 1).
    """
    there = data.held_out_prompts.unlike
    usual_score = round(max(0.0, threshold - USUAL_DISTANCE), 2)
    at_an_end = [prompts_to_decide(score, alpha, sequential, threshold) for score in (0.0, 1.0)]
    fewest = min(at_an_end)
    usual = prompts_to_decide(usual_score, alpha, sequential, threshold)
    usable = min(there, max_prompts)
    if usable >= usual:
        return None
    can = "can decide nothing" if usable < fewest else "are few"
    takes = f"a decision takes at least {fewest} where all votes agree, and about {usual} at a score of {usual_score}"
    cures = _more_prompts(data, [count for count in (fewest, usual) if count > there])
    if max_prompts < usual:
        cures.append(f"`boundary.max_prompts: {usual}` lets it take so many")
    cure = ", ".join(cures)
    return f"{usable} prompt{'s' * (usable != 1)} to measure on {can}: {takes}. {cure[:1].upper()}{cure[1:]}."


def _more_prompts(data: AlignmentDataModule, counts: list[int]) -> list[str]:
    """Which `val_fraction` gives so many prompts, or that it takes more rows."""
    fractions = {count: val_fraction_for(data, count) for count in counts}
    gives = [f"`data.val_fraction: {fraction:g}` gives {count}" for count, fraction in fractions.items() if fraction]
    return gives if all(fractions.values()) else [*gives, "more held-out rows give more"]


def val_fraction_for(data: AlignmentDataModule, prompts: int) -> float | None:
    """The `val_fraction` that leaves so many prompts to measure the boundary on, in hundredths.

    None if the held-out rows are given, or if more would be held out than trained on.
    """
    if data.val is not None:
        return None
    of_held_out = data.boundary_fraction if data.sampler is not None and data.boundary_fraction else 1.0
    fraction = math.ceil(100 * prompts / of_held_out / (len(data.train_sets) + len(data.held_out))) / 100
    return fraction if fraction <= 0.5 else None
