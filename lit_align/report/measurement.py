"""A measurement without a fit, as a record and as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_align.boundary.result import BOUNDARY, BoundaryResult
from lit_align.records import Stage


def result_record(result: BoundaryResult, how: str) -> dict[str, Any]:
    """The keys of a line of `boundary.jsonl`, without `step`.

    Args:
        result: the measurement.
        how: what it was measured on, the beginning of `reason`.
    """
    where = "outside" if result.decided else "inside"
    verdict = "decided" if result.decided else "undecided"
    return {
        "stage": result.stage.value,
        "on_policy_share": float(result.stage is Stage.FINE_TUNING),
        "score": result.score,
        "low": result.low,
        "high": result.high,
        "prompts": result.prompts,
        "votes_on": result.votes_on,
        "votes_off": result.votes_off,
        "ties": result.ties,
        "abstentions": result.abstentions,
        "seconds": result.seconds,
        "reason": f"{how}; {verdict}: {BOUNDARY} lies {where} the interval",
    }


def readable(found: Mapping[str, Any]) -> str:
    """Two lines for the terminal."""
    stage = "preference fine-tuning" if found["stage"] == Stage.FINE_TUNING.value else "preference injection"
    advice = "on-policy" if found["on_policy_share"] else "off-policy"
    return (
        f"Boundary score {found['score']:.3f} ({found['low']:.3f} to {found['high']:.3f}) on {found['prompts']} "
        f"prompts: {found['votes_on']} votes on-policy, {found['votes_off']} off-policy, {found['ties']} ties.\n"
        f"Stage: {stage}, train on {advice} data. {found['reason'].capitalize()}."
    )
