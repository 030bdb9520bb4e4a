"""One measurement: batches of candidates in, a result out."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.boundary.result import BOUNDARY, BoundaryResult, Characteristics, Stopped
from lit_align.boundary.score import BoundaryScore
from lit_align.boundary.sequential import SequentialTest, require_alpha
from lit_align.boundary.votes import JudgedPrompt, judge_prompts
from lit_align.data.held_out import Labels
from lit_align.data.judging import agreement
from lit_align.judges.base import Judge
from lit_align.judges.quality import bias_warning, contradiction_warning
from lit_align.metrics import characteristics
from lit_align.ranks import gather_in_turn, shard
from lit_align.records import CandidateSet, Prompt


class Sides(NamedTuple):
    """The two sides of one batch of prompts, this rank's share of it.

    Args:
        on: N sets of candidates, the on-policy side.
        off: N sets of the same prompts in the same order, the off-policy side.
        fresh: those that the policy gave as it is, so that they can become training pairs.
    """

    on: Sequence[CandidateSet]
    off: Sequence[CandidateSet]
    fresh: Sequence[CandidateSet] = ()


@dataclass(frozen=True)
class MeasurementOutcome:
    """All that a measurement leaves behind.

    Args:
        result: the score with its evidence.
        candidates: fresh candidates of the policy as it is, this rank's share: they can become training pairs.
        judged: the prompts of all ranks with both sides' scores.
    """

    result: BoundaryResult
    candidates: Sequence[CandidateSet] = ()
    judged: Sequence[JudgedPrompt] = field(default=(), repr=False)


class Measurement:
    """Judges batches of prompts until the stage is decided or the prompts are used up.

    In a distributed run each rank gives its share of each batch, and all ranks call the same methods; all of
    them hold the votes of all, so that they stop at the same batch with the same result.

    Args:
        judge: stands for the true preference.
        alpha: the chance of error, in (0, 1).
        sequential: stop as soon as the threshold is outside an anytime-valid interval (:class:`SequentialTest`);
            otherwise take all prompts and Student's t interval, which is narrower at the end, and valid only there.
        graded: the score goes by how much better an answer is (:func:`~lit_align.judges.base.graded_votes`), and not
            only by votes.
        labels: (better, worse) static answers to prompts, which the judge is held against in passing.
        threshold: the score at which the two stages meet, in (0, 1).
    """

    def __init__(
        self,
        judge: Judge,
        alpha: float = 0.05,
        sequential: bool = True,
        graded: bool = False,
        labels: Labels | None = None,
        threshold: float = BOUNDARY,
    ) -> None:
        require_alpha(alpha)
        self.threshold = threshold
        self.judge = judge
        self.alpha = alpha
        self.graded = graded
        self.labels: Labels = labels or {}
        self.judged: list[JudgedPrompt] = []
        self._score = BoundaryScore(1 - alpha, sync_on_compute=False)  # each rank counts the prompts of all
        self._test = SequentialTest(alpha, threshold) if sequential else None
        self._started = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether the rest of the prompts is not needed."""
        return self._test is not None and self._test.decided

    def add(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> None:
        """Judges one batch, this rank's share of it: N sets a side, of the same prompts in the same order."""
        judged = judge_prompts(self.judge, on, off)
        if shard()[1] > 1:
            judged = gather_in_turn([_without_rows(prompt) for prompt in judged])
        self.judged += judged
        shares = [prompt.share(self.graded) for prompt in judged]
        self._score.update([prompt.block for prompt in judged], shares)
        if self._test is not None:
            self._test.update([share for share in shares if share is not None])

    def result(self, at_the_end: Stopped = "budget") -> BoundaryResult:
        """The result of all batches so far.

        Args:
            at_the_end: what it means that no more prompts came, if the measurement was not done.

        Raises:
            ValueError: no prompt has a vote.
        """
        counted = self._score.result(seconds=time.perf_counter() - self._started)
        if not counted.informative:
            rank_zero_warn(
                f"the judge {self.judge.identity} told no answers apart: all {counted.ties} cross votes of "
                f"{counted.prompts} prompts are ties, so the score says nothing of the stage; take a judge that grades"
            )
        low, high = self._test.interval if self._test is not None else (counted.low, counted.high)
        return replace(
            counted,
            low=low,
            high=high,
            method="student_t" if self._test is None else self._test.method,
            alpha=self.alpha,
            stopped="decided" if self.done else at_the_end,
            judge_warning=_judge_warning(self.judged, self.labels) if counted.informative else None,
            characteristics=_characteristics(self.judged),
            graded=self.graded,
            threshold=self.threshold,
        )


def _characteristics(judged: Sequence[JudgedPrompt]) -> Characteristics:
    """Of both sides, at the same number of candidates a prompt: the figures change with it."""
    sides = {"on_policy": [prompt.on for prompt in judged], "off_policy": [prompt.off for prompt in judged]}
    count = min(_usual_count(sets) for sets in sides.values())
    return {side: _plain(characteristics(sets, candidates=count)) for side, sets in sides.items()}


def _judge_warning(judged: Sequence[JudgedPrompt], labels: Labels) -> str | None:
    """A doubt about the judge that the votes, and the scores of labelled answers, give rise to; None without one."""
    right: list[float] = []
    prompts: list[Prompt] = []
    for prompt in judged:
        verdicts = agreement(labels.get(prompt.off.prompt, ()), prompt.off)
        right += verdicts
        prompts += [prompt.off.prompt] * len(verdicts)
    on_lengths = [_lengths(prompt.on) for prompt in judged]
    off_lengths = [_lengths(prompt.off) for prompt in judged]
    warnings = (
        contradiction_warning(right, prompts),
        bias_warning([prompt.block for prompt in judged], on_lengths, off_lengths),
    )
    return " ".join(filter(None, warnings)) or None


def _lengths(candidates: CandidateSet) -> list[int]:
    """In characters."""
    return [len(candidate.text) for candidate in candidates.candidates]


def _usual_count(sets: Sequence[CandidateSet]) -> int:
    """The number of candidates that most prompts have."""
    return Counter(len(candidates.candidates) for candidates in sets).most_common(1)[0][0]


def _plain(figures: Mapping[str, float]) -> dict[str, float]:
    """As a checkpoint and JSON hold them."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _without_rows(judged: JudgedPrompt) -> JudgedPrompt:
    """Without the data's rows, which the other ranks do not need."""
    return replace(judged, on=replace(judged.on, row={}), off=replace(judged.off, row={}))
