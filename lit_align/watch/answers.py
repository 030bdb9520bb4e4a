"""Alarms from sampled answers and their verdicts. `docs/watch.md` has where the thresholds come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lit_align.watch.alarm import Alarm

FEWEST_PROMPTS = 16
"""On fewer prompts nothing is said of their answers."""
DUPLICATES = 0.5
"""Share of pairs of answers to one prompt that are the same text, in a policy that has collapsed."""
DUPLICATES_MORE = 0.3
"""By how much that share rose since the first measurement."""
DISTINCT = 0.5
"""Share of the start's distinct texts, over all prompts, that a policy has left which has collapsed."""
NEAR_LIMIT = 0.9
"""Mean length, as a share of `max_new_tokens`, of answers that have grown to the limit."""
ROOM_BEFORE = 0.75
"""The same of answers that had room to grow."""
HIGHER = 0.05
"""The least rise of a score that pays for longer answers."""
LONGER = 1.25
"""How many times as long answers are that may win by their length."""

COLLAPSE_ADVICE = (
    "Pairs of equal answers teach nothing. Sample at a higher temperature, or go back to static pairs; a lower "
    "learning rate or a larger beta would have kept more variety."
)


class Compared(NamedTuple):
    """The policy against its start by a judge, at a step: the share of prompts that it wins, with the interval."""

    step: int
    score: float
    low: float
    high: float


START = Compared(0, 0.5, 0.5, 0.5)


def find_collapse(before: float, now: float, prompts: int) -> Alarm | None:
    """The answers to a prompt are more and more the same.

    Args:
        before: share of pairs of answers to one prompt that are the same text, when it was first measured.
        now: the same at the last measurement.
        prompts: that were measured.
    """
    if prompts < FEWEST_PROMPTS or now < DUPLICATES or now - before < DUPLICATES_MORE:
        return None
    text = (
        f"{100 * now:.0f} % of the pairs of answers to one prompt are the same text, {100 * before:.0f} % at the first "
        "measurement: the policy has collapsed to few answers."
    )
    return Alarm("collapse", text, COLLAPSE_ADVICE)


def find_few_texts(before: Sequence[str], now: Sequence[str]) -> Alarm | None:
    """The policy gives the same few answers to all prompts.

    Args:
        before: the start's answers to some prompts, one each.
        now: the policy's answers to the same prompts.
    """
    distinct_before = len(set(before))
    distinct_now = len(set(now))
    if len(now) < FEWEST_PROMPTS or distinct_now > DISTINCT * distinct_before:
        return None
    text = (
        f"The answers to {len(now)} prompts are only {distinct_now} different texts, {distinct_before} at the start: "
        "the policy has collapsed to few answers."
    )
    return Alarm("collapse", text, COLLAPSE_ADVICE)


def find_growth(
    length_before: float, length_now: float, limit: int, score_before: float, score_now: float
) -> Alarm | None:
    """Answers grow to the sampler's limit and win no more than before.

    Args:
        length_before: mean length in tokens at the first measurement.
        length_now: the same at the last one.
        limit: the sampler's `max_new_tokens`.
        score_before: boundary score at the first measurement.
        score_now: the same at the last one.
    """
    grown = length_before <= ROOM_BEFORE * limit and length_now >= NEAR_LIMIT * limit
    if not grown or score_now - score_before >= HIGHER:
        return None
    return Alarm(
        "length",
        f"Answers grew from {length_before:.0f} to {length_now:.0f} tokens, where max_new_tokens is {limit}, and win "
        f"no more than before (boundary score {score_before:.2f} to {score_now:.2f}).",
        "Read samples.jsonl for answers that do not end. A loss by mean log-probs (SimPO, LD-DPO) takes length out of "
        "the reward; pairs whose chosen answers are not the longer ones, or a judge that does not pay for length, do "
        "too. If good answers are that long, raise max_new_tokens.",
    )


def find_over_optimisation(
    own: Sequence[tuple[int, float]], second: Sequence[Compared], judge: str = "a second judge"
) -> Alarm | None:
    """The score of the judge that the run trains on rises while that of another one falls.

    Args:
        own: steps with the mean score that the run's own judge gives to the policy's answers, oldest first.
        second: the comparisons with the start by a judge that the run does not train on, oldest first.
        judge: the name of that one.
    """
    if not second:
        return None
    last = second[-1]
    best = max((START, *second[:-1]), key=lambda compared: compared.score)
    scores_then = [score for step, score in own if step <= best.step]
    if last.high >= best.score or last.score >= best.low or not scores_then or own[-1][1] <= scores_then[-1]:
        return None
    return Alarm(
        "over_optimisation",
        f"The run's own judge gives higher scores ({scores_then[-1]:.2f} at step {best.step}, {own[-1][1]:.2f} now), "
        f"but by {judge} answers win {100 * last.score:.0f} % against the start, {100 * best.score:.0f} % at step "
        f"{best.step}: the policy learns to please its judge (over-optimisation).",
        f"Read answers.jsonl. Take a checkpoint from about step {best.step}, a larger beta or a lower learning rate, "
        "and a judge that is harder to please, such as a CombinedJudge of the two.",
    )


def find_wins_by_length(low: float, at_equal_lengths: float, length_before: float, length_now: float) -> Alarm | None:
    """The policy beats its start, but not at equal lengths: the judge goes by length.

    Args:
        low: lower end of the interval of the win rate.
        at_equal_lengths: the win rate at equal lengths.
        length_before: mean length of the start's answers in characters.
        length_now: the same of the policy's.
    """
    ratio = length_now / max(length_before, 1.0)
    if low <= 0.5 or at_equal_lengths > 0.5 or 1 / LONGER < ratio < LONGER:
        return None
    which = "longer" if ratio > 1 else "shorter"
    return Alarm(
        "judge_by_length",
        f"The policy beats its start (at least {100 * low:.0f} %), but not at equal lengths "
        f"({100 * at_equal_lengths:.0f} %): its answers are {which} ({length_before:.0f} to {length_now:.0f} "
        "characters), and the judge goes by length.",
        "Measure the judge with `lit-align judge`, which tells length from quality, and take one that does not go by "
        "length, or a CombinedJudge with a veto on it.",
    )
