"""The boundary score as a metric, and of two piles of candidates."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.boundary.interval import mean_interval
from lit_align.boundary.result import BOUNDARY, BoundaryResult
from lit_align.boundary.votes import count_votes
from lit_align.clock import timed
from lit_align.console import show_activity
from lit_align.judges.base import Judge
from lit_align.records import CandidateSet
from lit_align.rows.matching import match_by_prompt

_PROMPTS_AT_ONCE = 64
_COUNTS = ("prompts", "votes_on", "votes_off", "ties", "abstentions")


class BoundaryScore(Metric):
    """The share of cross votes that the policy's own answers win, averaged over prompts.

    Each on-policy candidate of a prompt meets each off-policy candidate of it, a preference model votes,
    and a tie is half a vote for either side. Each prompt weighs the same; where every prompt has as many
    candidates this is V_on / (V_on + V_off), with ties shared out. Below 0.5 the policy is in the
    preference injection stage and off-policy data helps most; from 0.5 on it is in the preference
    fine-tuning stage and on-policy data helps most.

    Source: Algorithm 1 of arXiv 2508.10530, "Is On-Policy Data always the Best Choice for Direct
    Preference Optimization-based LM Alignment?" (v2), which as v1 was titled "Diversity First, Quality
    Later: A Two-Stage Assumption for Language Model Alignment". The text of its Algorithm 1 and its
    Table 3 write the direction of the votes differently; the one here fits Table 3: more on-policy
    wins, a later stage.

    The states are sums, so the ranks of a distributed run reduce to what one process would have counted.

    Args:
        confidence: of the interval around the score, in (0, 1).
        kwargs: of `torchmetrics.Metric`, such as `sync_on_compute`.

    Example:
        >>> metric = BoundaryScore()
        >>> metric.update([np.array([[1.0, 0.5], [0.0, 0.0]]), np.array([[1.0, 1.0]])])
        >>> result = metric.result()
        >>> result.score, result.votes_on, result.votes_off, result.ties, result.prompts
        (0.6875, 3, 2, 1, 2)
    """

    full_state_update = False
    higher_is_better = None
    shares: Tensor
    squares: Tensor
    prompts: Tensor
    votes_on: Tensor
    votes_off: Tensor
    ties: Tensor
    abstentions: Tensor

    def __init__(self, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), such as 0.95, got {confidence}")
        self.confidence = confidence
        for name in ("shares", "squares"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in _COUNTS:
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, votes: Sequence[np.ndarray], shares: Sequence[float | None] | None = None) -> None:
        """Counts the cross votes of some prompts.

        Args:
            votes: for each prompt an array [K_on, K_off] with P(on-policy candidate wins) in [0, 1]: above
                0.5 is a vote for it, 0.5 a tie, NaN an abstention, which counts nowhere else. A prompt
                without any vote is no prompt here.
            shares: the on-policy side's share of each prompt, in [0, 1], None without a vote; by default its share of
                the votes.

        Raises:
            ValueError: a probability is outside [0, 1].
        """
        counted = [count_votes(block) for block in votes]
        for prompt, share in zip(counted, shares or [prompt.share for prompt in counted], strict=True):
            self.votes_on += prompt.on
            self.votes_off += prompt.off
            self.ties += prompt.ties
            self.abstentions += prompt.abstentions
            if share is not None:
                self.shares += share
                self.squares += share**2
                self.prompts += 1

    def compute(self) -> dict[str, Tensor]:
        """score, low, high, stage (0 injection, 1 fine-tuning), prompts, votes_on, votes_off, ties, abstentions.

        Raises:
            ValueError: no prompt has a vote.
        """
        count = int(self.prompts)
        if count == 0:
            raise ValueError(
                f"no prompt has a cross vote ({int(self.abstentions)} abstentions): expected on-policy and off-policy "
                "candidates of the same prompts and a judge that scores them"
            )
        low, high = mean_interval(float(self.shares), float(self.squares), count, self.confidence)
        score = self.shares / count
        return {
            "score": score,
            "low": torch.full_like(score, low),
            "high": torch.full_like(score, high),
            "stage": (score >= BOUNDARY).long(),
            **{name: getattr(self, name) for name in _COUNTS},
        }

    def result(self, seconds: float = 0.0) -> BoundaryResult:
        """The same as a plain record, reduced over the ranks."""
        if not self.update_called:  # the error of `compute` says more than the warning of torchmetrics
            self.update([])
        values: dict[str, Any] = {name: value.item() for name, value in self.compute().items() if name != "stage"}
        return BoundaryResult(**values, seconds=seconds, alpha=round(1 - self.confidence, 12), stopped="pool")


@timed("judging")
def measure_sets(
    on: Iterable[CandidateSet],
    off: Iterable[CandidateSet],
    judge: Judge,
    confidence: float = 0.95,
    *,
    device: torch.device | None = None,
    progress: bool = False,
) -> BoundaryResult:
    """Judges on-policy against off-policy candidates of the same prompts, all of them.

    Sets are matched by prompt; several sets of one prompt are taken together. Prompts that only have
    on-policy candidates are left out with a warning that counts them; off-policy sets without a partner
    are not needed.

    In a distributed run each rank passes its share of the prompts and all get the same result.

    Args:
        on: candidates from the policy.
        off: the static candidates.
        judge: stands for the true preference.
        confidence: of the interval, in (0, 1).
        device: where the counts are reduced in a distributed run; NCCL needs the rank's GPU.
        progress: show a bar with a rate while judging.

    Raises:
        ValueError: no prompt has candidates on both sides.
    """
    began = time.perf_counter()
    pairs = match_by_prompt(on, off)
    metric = BoundaryScore(confidence)
    if device is not None:
        metric = metric.to(device)
    with show_activity(len(pairs), "judging", "prompts", progress) as bar:
        for start in range(0, len(pairs), _PROMPTS_AT_ONCE):
            batch = pairs[start : start + _PROMPTS_AT_ONCE]
            metric.update(judge.cross_votes([a for a, _ in batch], [b for _, b in batch]))
            bar.update(len(batch))
    return metric.result(seconds=time.perf_counter() - began)
