"""A measurement without a fit, as a record and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lit_align.boundary.meaning import SIDES, meaning
from lit_align.boundary.result import BoundaryResult, Characteristics
from lit_align.records import Stage
from lit_align.report.text import fill

ENDED = {
    "decided": "stopped there: {} lies outside the interval",
    "budget": "all {} prompts of the budget were used",
    "pool": "all {} prompts that there are were used",
}
FIGURES = {
    "score_mean": "score, mean",
    "score_best": "score, best",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "near_duplicates": "near duplicates",
    "length_mean": "words",
}
"""The figures that fit on a screen; the record holds all."""


def result_record(result: BoundaryResult, how: str, sides: tuple[str, str] = SIDES) -> dict[str, Any]:
    """The keys of a line of `boundary.jsonl`, without `step`, and what they mean for the data to train on.

    Args:
        result: the measurement.
        how: what it was measured on, the beginning of `reason`.
        sides: who was compared, see :func:`~lit_align.boundary.meaning.meaning`.
    """
    return {
        "stage": result.stage.value,
        "on_policy_share": float(result.stage is Stage.FINE_TUNING),
        "decided": result.decided,
        **asdict(result),
        "reason": f"{how}; {_verdict(result)}",
        "meaning": meaning(result, sides),
    }


def _verdict(result: BoundaryResult) -> str:
    if not result.informative:
        return "undecided: the judge told no answers apart, so the score says nothing"
    end = ENDED[result.stopped].format(f"{result.threshold:g}" if result.stopped == "decided" else result.prompts)
    if result.stopped == "decided":
        return f"decided, {end}"
    if result.decided:
        return f"decided: {result.threshold:g} lies outside the interval; {end}"
    return f"undecided: {result.threshold:g} lies inside the interval; {end}"


def readable(record: Mapping[str, Any]) -> str:
    """A few lines for a terminal of 80 columns."""
    stage = "preference fine-tuning" if record["stage"] == Stage.FINE_TUNING.value else "preference injection"
    name = "Boundary score, graded," if record["graded"] else "Boundary score"
    undecided = "" if record["decided"] else " (undecided)"
    paragraphs = [
        f"{name} {record['score']:.3f} ({record['low']:.3f} to {record['high']:.3f}) on {record['prompts']} "
        f"prompts: {record['votes_on']} votes on-policy, {record['votes_off']} off-policy, {record['ties']} ties"
        + (f", {record['abstentions']} abstentions." if record["abstentions"] else "."),
        f"Stage: {stage}{undecided}. {record['reason'].capitalize()}.",
        record["meaning"],
        *([f"The judge: {record['judge_warning']}"] if record["judge_warning"] else []),
    ]
    return "\n".join([*(fill(text, indent="") for text in paragraphs), *_table(record["characteristics"])])


def _table(sides: Characteristics) -> list[str]:
    """Both sides beside each other; nothing where there are no figures."""
    on = sides.get("on_policy", {})
    off = sides.get("off_policy", {})
    rows = [
        f"{label:<16}  {on[name]:>10.3f}  {off[name]:>10.3f}"
        for name, label in FIGURES.items()
        if name in on and name in off
    ]
    count = f"{on.get('candidates', 0):g} a prompt"  # the same on both sides, or the figures would not compare
    return [f"{count:<16}  {'on-policy':>10}  {'off-policy':>10}", *rows] if rows else []
