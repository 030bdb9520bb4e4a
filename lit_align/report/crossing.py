"""The measurements of a run in sentences: whether it crossed the boundary, and what the next run needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.boundary.meaning import SIDES, meaning
from lit_align.boundary.result import BOUNDARY, Decision
from lit_align.records import Stage

_TUNING = Stage.FINE_TUNING.value


def crossing(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Whether the run moved from preference injection to preference fine-tuning as the score crossed the threshold.

    Returns:
        `crossed` (bool), `step` (of the decision that switched, or None) and `text`, honest sentences.
    """
    measured = [decision for decision in decisions if decision.result is not None]
    telling = [decision for decision in measured if decision.result is not None and decision.result.informative]
    if not measured:
        return _not_crossed("The boundary was not measured in this run.")
    if not telling:
        return _not_crossed("The judge told no answers apart: the run's stage was not measured.")
    if telling[0].stage == _TUNING:
        return _not_crossed(_began_tuning(telling[0]))
    over = [decision for decision in telling if _score(decision) >= _threshold(decision)]
    if not over:
        return _not_crossed(_stayed(max(telling, key=_score)))
    switched = next((decision for decision in over if decision.stage == _TUNING), None)
    if switched is None:
        return _not_crossed(
            f"The score reached {_threshold(over[0]):g} ({_words(over[0])}), but the schedule did not leave preference "
            f"injection: {over[-1].reason}."
        )
    return {"crossed": True, "step": switched.step, "text": _crossed(switched, telling[-1])}


def for_the_next_run(decisions: Sequence[Decision], sides: tuple[str, str] = SIDES) -> str:
    """The meaning of the last measurement for the data of the next run.

    Args:
        decisions: of the run, oldest first.
        sides: who was compared, see :func:`~lit_align.boundary.meaning.meaning`.
    """
    last = next((decision for decision in reversed(decisions) if decision.result is not None), None)
    if last is None or last.result is None:
        return "For the next run: `lit-align measure` with its config says which pairs help most."
    return f"For the next run, as measured at step {last.step}: {meaning(last.result, sides)}"


def _not_crossed(text: str) -> dict[str, Any]:
    return {"crossed": False, "step": None, "text": text}


def _began_tuning(first: Decision) -> str:
    if first.decided:
        return f"The run began in preference fine-tuning ({_words(first)}): nothing to cross."
    return f"The first measurement was undecided ({_words(first)}); its better guess was preference fine-tuning."


def _stayed(best: Decision) -> str:
    stayed = "the run stayed in preference injection" if best.decided else "whether the run got there is undecided"
    return f"The score did not reach {_threshold(best):g} (highest: {_words(best)}): {stayed}."


def _crossed(switched: Decision, last: Decision) -> str:
    over = "The run crossed into" if switched.decided else "On an undecided score the run went over to"
    text = f"{over} preference fine-tuning ({_words(switched)})."
    if last.stage != _TUNING:
        text += f" It went back to preference injection ({_words(last)})."
    return text


def _score(decision: Decision) -> float:
    return decision.score if decision.score is not None else 0.0


def _threshold(decision: Decision) -> float:
    return BOUNDARY if decision.result is None else decision.result.threshold


def _words(decision: Decision) -> str:
    sure = "" if decision.decided else "undecided, "
    return (
        f"score {decision.score:.2f} at step {decision.step}, {sure}interval {decision.low:.2f} to {decision.high:.2f}"
    )
