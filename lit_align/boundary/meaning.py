"""The meaning of a measurement for the data to train on, in words."""

from __future__ import annotations

from lit_align.boundary.power import prompts_to_decide
from lit_align.boundary.result import FEW_PROMPTS, BoundaryResult
from lit_align.records import Stage

SIDES = ("the policy's own answers", "the static answers")
"""Who is compared: the on-policy side, and the off-policy side."""
ADVICE = {
    Stage.INJECTION: "static pairs (off-policy) teach it more than its own answers",
    Stage.FINE_TUNING: "pairs of its own answers (on-policy) teach it more than the static ones",
}
_NEAR = 0.02


def meaning(result: BoundaryResult, sides: tuple[str, str] = SIDES) -> str:
    """One or two sentences: who wins, whether that decides the stage, and which pairs come next.

    Args:
        result: the measurement.
        sides: the names of the on-policy and of the off-policy side.

    Example:
        >>> meaning(BoundaryResult(0.02, 0.01, 0.09, prompts=100, votes_on=2, votes_off=98, ties=0))
        '0.02: the static answers win 98 of 100 votes; static pairs (off-policy) teach it more than its own answers.'
    """
    if not result.informative:
        return (
            f"Undecided: all {result.ties} votes are ties, so the score says nothing. Take a judge that grades; until "
            "then static pairs come first."
        )
    standing = _standing(result, *sides)
    if result.decided:
        return f"{result.score:.2f}: {standing}; {ADVICE[result.stage]}."
    return f"{result.score:.2f}, undecided: {standing}, but {_doubt(result)}. {_way_on(result)}"


def _standing(result: BoundaryResult, on: str, off: str) -> str:
    if result.score == 0.5:
        return "both sides win half of the votes" if not result.graded else "neither side is ahead"
    of_on = round(100 * result.score)
    leader, wins = (on, of_on) if result.score >= 0.5 else (off, 100 - of_on)
    if result.graded:
        return f"by margins {leader} are ahead"
    return f"{leader} win {wins} of 100 votes" + (", ties half a vote" if result.ties else "")


def _doubt(result: BoundaryResult) -> str:
    leave = "1 prompt leaves" if result.prompts == 1 else f"{result.prompts} prompts leave"
    return f"{leave} {result.threshold:g} inside the interval ({result.low:.2f} to {result.high:.2f})"


def _way_on(result: BoundaryResult) -> str:
    if not result.tells:
        guess = f"On fewer than {FEW_PROMPTS} prompts that is no guess to follow: static pairs come first."
    else:
        guess = f"The better guess: {ADVICE[result.stage]}."
    if abs(result.score - result.threshold) < _NEAR:
        return f"{guess} So near {result.threshold:g} it takes thousands of prompts to decide."
    needed = prompts_to_decide(round(result.score, 2), result.alpha, result.method == "betting", result.threshold)
    return f"{guess} To decide such a score takes about {needed} prompts."
