"""The data module as the boundary sees it: prompts are drawn from it, and it follows the decisions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import cast

from lightning.pytorch import Trainer

from lit_align.boundary.result import Decision
from lit_align.data.datamodule import AlignmentDataModule
from lit_align.judges.base import Judge
from lit_align.records import CandidateSet
from lit_align.rows.alike import draw_unlike
from lit_align.rows.matching import merged_by_prompt
from lit_align.run_parts import datamodule_of
from lit_align.seeding import derive_seed


def data_of(trainer: Trainer) -> AlignmentDataModule:
    """The trainer's data module.

    Raises:
        TypeError: it cannot swap its source.
    """
    data = datamodule_of(trainer)
    if not hasattr(data, "set_on_policy_share"):
        raise TypeError(
            f"the boundary callback swaps the source inside an AlignmentDataModule, got {type(data).__name__}: "
            "call trainer.fit(module, datamodule=...)"
        )
    return cast(AlignmentDataModule, data)


def judge_of(judge: Judge | None, data: AlignmentDataModule) -> Judge:
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


def draw(data: AlignmentDataModule, count: int, *purpose: str | int) -> list[CandidateSet]:
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
    return draw_unlike(pool, data.held_out_prompts.group_of, count, random.Random(derive_seed(data.seed, *purpose)))


def follow(
    data: AlignmentDataModule, before: Decision | None, decision: Decision, fresh: Sequence[CandidateSet] | None
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


def require_restored(data: AlignmentDataModule, decisions: bool) -> None:
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
