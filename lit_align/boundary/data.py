"""The data module as the boundary sees it: prompts are drawn from it, and it follows the decisions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, cast

from lightning.pytorch import Trainer

from lit_align.boundary.result import Decision
from lit_align.data.held_out import Labels
from lit_align.judges.base import Judge
from lit_align.records import CandidateSet, Prompt
from lit_align.rows.alike import draw_unlike
from lit_align.rows.matching import merged_by_prompt
from lit_align.seeding import derive_seed


class BoundaryData(Protocol):
    """The part of `AlignmentDataModule` that the callback uses."""

    judge: Judge | None
    seed: int

    @property
    def measured_on(self) -> Sequence[CandidateSet]:
        """The held-out prompts that the boundary may use, with their static candidates."""
        ...

    def group_of(self, prompt: Prompt) -> str:
        """The group of prompts that are alike; a measurement takes one of each."""
        ...

    @property
    def labels(self) -> Labels:
        """(better, worse) answers to held-out prompts, as the data have it."""
        ...

    def val_fraction_for(self, prompts: int) -> float | None:
        """The share of the rows to hold out that leaves so many prompts to measure on; None where none does."""
        ...

    @property
    def train_pairs(self) -> Sequence[object]:
        """The static training pairs."""
        ...

    @property
    def restored(self) -> bool: ...

    def sample(
        self, sets: Sequence[CandidateSet], *purpose: str | int, num_candidates: int | None = None, desc: str = ...
    ) -> list[CandidateSet]: ...

    def set_on_policy_share(self, share: float) -> None: ...

    def request_round(self) -> None: ...

    def queue_round(self, sets: Sequence[CandidateSet]) -> None:
        """Fresh candidates for the next on-policy round, this rank's share."""
        ...


def data_of(trainer: Trainer) -> BoundaryData:
    """The trainer's data module.

    Raises:
        TypeError: it cannot swap its source.
    """
    data = getattr(trainer, "datamodule", None)
    if not hasattr(data, "set_on_policy_share"):
        raise TypeError(
            f"the boundary callback swaps the source inside an AlignmentDataModule, got {type(data).__name__}: "
            "call trainer.fit(module, datamodule=...)"
        )
    return cast(BoundaryData, data)


def judge_of(judge: Judge | None, data: BoundaryData) -> Judge:
    """`judge`, or the data's.

    Raises:
        ValueError: there is none.
    """
    chosen = judge or data.judge
    if chosen is None:
        raise ValueError(
            "the boundary needs a judge of sampled answers: set `judge` of the data module or of the callback"
        )
    return chosen


def draw(data: BoundaryData, count: int, *purpose: str | int) -> list[CandidateSet]:
    """At most `count` of the prompts to measure on, with their static candidates, without replacement, none alike.

    Args:
        data: the data module.
        count: prompts at most.
        purpose: what the draw is for: with the data's seed it makes the seed.

    Raises:
        ValueError: there are no such prompts.
    """
    pool = list(merged_by_prompt(data.measured_on).values())
    if not pool:
        raise ValueError(
            "the boundary is measured on held-out prompts with static candidates, and the data have none: "
            "set data.val, or data.val_fraction to split some off the training prompts"
        )
    return draw_unlike(pool, data.group_of, count, random.Random(derive_seed(data.seed, *purpose)))


def follow(
    data: BoundaryData, before: Decision | None, decision: Decision, fresh: Sequence[CandidateSet] | None
) -> None:
    """Makes the data follow a decision.

    Args:
        data: the data module.
        before: the decision that held until now; None for the first.
        decision: the new one.
        fresh: candidates sampled for it, which are training data where it is for on-policy pairs; None without a
            measurement.
    """
    data.set_on_policy_share(decision.on_policy_share)
    if decision.on_policy_share == 0:
        return
    if before is None or before.on_policy_share == 0:
        data.request_round()
    if fresh is not None:
        data.queue_round(fresh)


def require_restored(data: BoundaryData, decisions: bool) -> None:
    """Raises ValueError where a resumed run lacks the boundary's `decisions` or the data's position."""
    missing = [
        name
        for name, there in (("the boundary's decisions", decisions), ("the data's position", data.restored))
        if not there
    ]
    if missing:
        raise ValueError(
            f"the checkpoint lacks {' and '.join(missing)}, so the run cannot go on where it was: resume from a "
            "checkpoint of a run with this callback and this data module, or start a fresh run from its weights"
        )
