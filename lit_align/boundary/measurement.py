"""One measurement: batches of judged prompts in, a result out."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lit_align.boundary.interval import mean_interval
from lit_align.boundary.result import BoundaryResult, Characteristics, Method, Stopped
from lit_align.boundary.sequential import SequentialTest, require_alpha
from lit_align.boundary.votes import JudgedPrompt, PromptVotes, judge_prompts
from lit_align.data.held_out import Labels
from lit_align.data.judging import agreement
from lit_align.judges.base import Judge
from lit_align.judges.quality import bias_warning, contradiction_warning
from lit_align.metrics import characteristics
from lit_align.ranks import gather_in_turn, shard
from lit_align.records import CandidateSet


class Measurement:
    """Judges batches of prompts until the stage is decided or the prompts are used up.

    In a distributed run each rank gives its share of each batch, and all ranks call the same methods; all of
    them hold the votes of all, so that they stop at the same batch with the same result.

    Args:
        judge: stands for the true preference.
        alpha: the chance of error, in (0, 1).
        sequential: stop as soon as 0.5 is outside an anytime-valid interval (:class:`SequentialTest`);
            otherwise take all prompts and Student's t interval, which is narrower at the end, and valid there
            alone.
        graded: the score goes by how much better an answer is (:func:`~lit_align.judges.base.graded_votes`), and not
            by votes alone.
        labels: (better, worse) static answers to prompts, which the judge is held against in passing.
    """

    def __init__(
        self,
        judge: Judge,
        alpha: float = 0.05,
        sequential: bool = True,
        graded: bool = False,
        labels: Labels | None = None,
    ) -> None:
        require_alpha(alpha)
        self.judge = judge
        self.alpha = alpha
        self.graded = graded
        self.labels: Labels = labels or {}
        self.judged: list[JudgedPrompt] = []
        self._test = SequentialTest(alpha) if sequential else None
        self._votes: list[PromptVotes] = []
        self._shares: list[float] = []
        self._started = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether the rest of the prompts is not needed."""
        return self._test is not None and self._test.decided

    def add(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> None:
        """Judges one batch, this rank's share of it: N sets a side, of the same prompts in the same order."""
        judged = judge_prompts(self.judge, on, off)
        if shard()[1] > 1:
            judged = gather_in_turn([_without_rows(one) for one in judged])
        self.judged += judged
        shares = [share for one in judged if (share := one.share(self.graded)) is not None]
        self._votes += [one.votes for one in judged]
        self._shares += shares
        if self._test is not None:
            self._test.update(shares)

    def result(self, at_the_end: Stopped = "budget") -> BoundaryResult:
        """What was found.

        Args:
            at_the_end: what it means that no more prompts came, if the measurement was not done.

        Raises:
            ValueError: no prompt has a vote.
        """
        shares = np.array(self._shares)
        on, off, ties, abstentions = [sum(column) for column in zip(*self._votes, strict=True)] or [0] * 4
        if not shares.size:
            raise ValueError(
                f"no prompt has a cross vote ({abstentions} abstentions): expected on-policy and off-policy "
                "candidates of the same prompts and a judge that scores them"
            )
        if not on + off:
            rank_zero_warn(
                f"the judge {self.judge.identity} told no answers apart: all {ties} cross votes of {shares.size} "
                "prompts are ties, so the score says nothing of the stage; take a judge that grades"
            )
        low, high = self._interval(shares)
        method: Method = "student_t" if self._test is None else self._test.method
        return BoundaryResult(
            score=float(shares.mean()),
            low=low,
            high=high,
            prompts=shares.size,
            votes_on=on,
            votes_off=off,
            ties=ties,
            abstentions=abstentions,
            seconds=time.perf_counter() - self._started,
            method=method,
            alpha=self.alpha,
            stopped="decided" if self.done else at_the_end,
            judge_warning=_judge_warning(self.judged, self.labels) if on + off else None,
            characteristics=_characteristics(self.judged),
            graded=self.graded,
        )

    def _interval(self, shares: np.ndarray) -> tuple[float, float]:
        if self._test is not None:
            return self._test.interval
        return mean_interval(float(shares.sum()), float((shares**2).sum()), shares.size, 1 - self.alpha)


def _characteristics(judged: Sequence[JudgedPrompt]) -> Characteristics:
    """Of both sides, at the same number of candidates a prompt: the figures change with it."""
    sides = {"on_policy": [one.on for one in judged], "off_policy": [one.off for one in judged]}
    count = min(_usual_count(sets) for sets in sides.values())
    return {side: _plain(characteristics(sets, candidates=count)) for side, sets in sides.items()}


def _judge_warning(judged: Sequence[JudgedPrompt], labels: Labels) -> str | None:
    """What the votes, and the scores of labelled answers, give away about the judge."""
    right = [(at.off.prompt, value) for at in judged for value in agreement(labels.get(at.off.prompt, ()), at.off)]
    lengths = [[[len(c.text) for c in side.candidates] for side in (at.on, at.off)] for at in judged]
    warnings = (
        contradiction_warning([value for _, value in right], [prompt for prompt, _ in right]),
        bias_warning([at.block for at in judged], [on for on, _ in lengths], [off for _, off in lengths]),
    )
    return " ".join(filter(None, warnings)) or None


def _usual_count(sets: Sequence[CandidateSet]) -> int:
    """The number of candidates that most prompts have."""
    return Counter(len(one.candidates) for one in sets).most_common(1)[0][0]


def _plain(figures: Mapping[str, float]) -> dict[str, float]:
    """As a checkpoint and JSON hold them."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _without_rows(judged: JudgedPrompt) -> JudgedPrompt:
    """Without the data's rows, which the other ranks do not need."""
    return replace(judged, on=replace(judged.on, row={}), off=replace(judged.off, row={}))
