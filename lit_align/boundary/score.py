"""The boundary score as a metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.boundary.interval import mean_interval
from lit_align.boundary.result import BOUNDARY, BoundaryResult
from lit_align.boundary.votes import count_votes


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

    def __init__(self, confidence: float = 0.95) -> None:
        super().__init__()
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), such as 0.95, got {confidence}")
        self.confidence = confidence
        for name in ("shares", "squares"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("prompts", "votes_on", "votes_off", "ties", "abstentions"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, votes: Sequence[np.ndarray]) -> None:
        """Counts the cross votes of some prompts.

        Args:
            votes: for each prompt an array [K_on, K_off] with P(on-policy candidate wins) in [0, 1]: above
                0.5 is a vote for it, 0.5 a tie, NaN an abstention, which counts nowhere else. A prompt
                without any vote is no prompt here.

        Raises:
            ValueError: a probability is outside [0, 1].
        """
        for block in votes:
            counted = count_votes(block)
            self.votes_on += counted.on
            self.votes_off += counted.off
            self.ties += counted.ties
            self.abstentions += counted.abstentions
            if (share := counted.share) is not None:
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
        counts = {name: getattr(self, name) for name in ("prompts", "votes_on", "votes_off", "ties", "abstentions")}
        return {
            "score": score,
            "low": torch.full_like(score, low),
            "high": torch.full_like(score, high),
            "stage": (score >= BOUNDARY).long(),
            **counts,
        }

    def result(self, seconds: float = 0.0) -> BoundaryResult:
        """The same as a plain record, reduced over the ranks."""
        found = self.compute()
        return BoundaryResult(
            score=float(found["score"]),
            low=float(found["low"]),
            high=float(found["high"]),
            prompts=int(found["prompts"]),
            votes_on=int(found["votes_on"]),
            votes_off=int(found["votes_off"]),
            ties=int(found["ties"]),
            abstentions=int(found["abstentions"]),
            seconds=seconds,
            alpha=round(1 - self.confidence, 12),
            stopped="pool",
        )
