"""The held-out prompts: some to measure the boundary on, the others to evaluate on, and what a measurement hands on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.console import note
from lit_align.ranks import gather
from lit_align.records import Candidate, CandidateSet, FinishReason, Prompt, prompt_identity, prompt_text
from lit_align.rows.alike import normal_form

Labels = Mapping[Prompt, Sequence[tuple[str, str]]]
"""For each prompt the pairs of a better and a worse answer."""


def set_apart(prompts: Iterable[Prompt], groups: Mapping[Prompt, str], fraction: float) -> frozenset[Prompt]:
    """The prompts that the boundary is measured on and that may be trained on afterwards.

    Groups of prompts that are alike stay together. They are ranked by a hash of their leader, and the first of them
    are set apart, as near to `fraction` as their number allows, at least one and never all. So the split depends on
    the set of prompts and on `fraction`, not on their order or a seed. A prompt that is added moves at most one other
    group across it; what that would mean for a run that goes on is found by :meth:`HeldOut.load_state_dict`.

    Args:
        prompts: those that can be measured on.
        groups: the group of each held-out prompt, see :func:`~lit_align.rows.alike.group_alike`.
        fraction: the share of the groups to set apart, in [0, 1).
    """
    ranked = sorted({groups[prompt] for prompt in prompts}, key=_digest)
    if not ranked or fraction == 0:
        return frozenset()
    if len(ranked) == 1:
        rank_zero_warn(
            f"{len(groups)} held-out prompts{' that are all alike' if len(groups) > 1 else ''} are too few to keep "
            "those of the boundary apart from those of the evaluation: all serve both, and what a measurement samples "
            "is not trained on. Hold out more, or set the data's `boundary_fraction: 0` to have it so."
        )
        return frozenset()
    first = set(ranked[: min(max(round(fraction * len(ranked)), 1), len(ranked) - 1)])
    return frozenset(prompt for prompt, group in groups.items() if group in first)


def prompt_key(prompt: Prompt) -> str:
    """64 bits of a hash of the prompt, as 16 hexadecimal digits."""
    return _digest(prompt_identity(prompt))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


class HeldOut:
    """Keeps apart what is measured, what is evaluated and what was trained on.

    Args:
        sets: all held-out prompts with their static candidates.
        apart: the prompts of the boundary. None: all prompts serve both ends, and nothing is handed on.
        groups: the group of each prompt that is like another one; any other is a group by itself.
        labels: (better, worse) answers to a prompt, as the data have it.

    Attributes:
        evaluated_on: the prompts of the val pairs and the win rate.
        pool: the prompts of the boundary, trained on or not.
        on_offer: candidates for the next on-policy round, of all ranks.
        offered_at: the optimizer step at which they were sampled.
    """

    def __init__(
        self,
        sets: Sequence[CandidateSet],
        apart: frozenset[Prompt],
        groups: Mapping[Prompt, str] | None = None,
        labels: Labels | None = None,
    ) -> None:
        self.evaluated_on = [one for one in sets if one.prompt not in apart]
        self.pool = [one for one in sets if one.prompt in apart]
        self.labels: Labels = labels or {}
        self._groups = groups or {}
        self._spent: set[str] = set()
        self.on_offer: list[CandidateSet] = []
        self.offered_at = 0

    def group_of(self, prompt: Prompt) -> str:
        """What the prompt has in common with those that are like it, see :func:`~lit_align.rows.alike.group_alike`."""
        return self._groups.get(prompt) or normal_form(prompt)

    @property
    def measured_on(self) -> list[CandidateSet]:
        """The prompts of the boundary that were not trained on, nor one like them."""
        if not self.pool:
            return self.evaluated_on
        return [one for one in self.pool if self._group_key(one) not in self._spent]

    @property
    def unlike(self) -> int:
        """How many of the prompts to measure on a measurement can take: one of each group."""
        return len({self._group_key(one) for one in self.measured_on if one.candidates})

    def __str__(self) -> str:
        measured, evaluated, unlike = len(self.measured_on), len(self.evaluated_on), self.unlike
        alike = "" if unlike == measured else f" (one of each of {unlike} groups of prompts that are alike)"
        return f"Held-out prompts: {measured} to measure the boundary on{alike}, {evaluated} to evaluate on"

    def offer(self, sets: Sequence[CandidateSet], step: int) -> None:
        """Keeps fresh candidates for the next on-policy round, in place of any that were kept before.

        Args:
            sets: this rank's; all ranks call it.
            step: the optimizer step at which they were sampled.

        Raises:
            ValueError: for a prompt that the boundary may not use: it would end up in training.
        """
        if not self.pool:
            return
        own = {one.prompt for one in self.pool}
        foreign = [one for one in sets if one.prompt not in own]
        if foreign:
            raise ValueError(
                f"expected candidates for prompts of the data's `measured_on`, got {prompt_text(foreign[0].prompt)!r} "
                f"({foreign[0].where}): evaluation prompts are never trained on"
            )
        offered = {one.prompt: one for part in gather(list(sets)) for one in part}
        self.on_offer = [offered[one.prompt] for one in self.pool if one.prompt in offered]  # as one process has them
        self.offered_at = step

    def withdraw(self) -> None:
        """Forgets the candidates on offer."""
        self.on_offer = []

    def spend(self, sets: Iterable[CandidateSet]) -> None:
        """Leaves prompts that were trained on out of later measurements, as long as a quarter of the pool remains."""
        self._spent |= {self._group_key(one) for one in sets}
        if 4 * len(self.measured_on) < len(self.pool):
            self._spent.clear()
            note(
                f"boundary: most of the {len(self.pool)} prompts it is measured on have become training prompts; from "
                "here on all are measured on again. More held-out prompts keep the two apart."
            )

    def state_dict(self) -> dict[str, Any]:
        """The pool, the groups of it that were trained on, and the candidates on offer, in plain types."""
        offered = [
            {
                "prompt": prompt_key(one.prompt),
                "texts": [candidate.text for candidate in one.candidates],
                "ended": [candidate.finish_reason.value for candidate in one.candidates],
                "token_ids": [None if c.token_ids is None else list(c.token_ids) for c in one.candidates],
            }
            for one in self.on_offer
        ]
        pool = sorted(prompt_key(one.prompt) for one in self.pool)
        return {"pool": pool, "spent": sorted(self._spent), "offered": offered, "offered_at": self.offered_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; prompts that are no longer held out are left out.

        Raises:
            ValueError: if the run may have been trained on prompts of the evaluation.
        """
        self._require_unseen(state)
        pool = {prompt_key(one.prompt): one for one in self.pool}
        self._spent = set(state["spent"]) & {self._group_key(one) for one in self.pool}
        self.offered_at = state["offered_at"]
        self.on_offer = [
            replace(pool[one["prompt"]], candidates=_candidates(one))
            for one in state["offered"]
            if one["prompt"] in pool
        ]
        lost = len(state["offered"]) - len(self.on_offer)
        if lost:
            rank_zero_warn(
                f"the checkpoint has sampled candidates for {lost} prompts that are no longer held out for the "
                "boundary: they are left out, and the run goes on, but not as before"
            )

    def _require_unseen(self, state: dict[str, Any]) -> None:
        if "pool" not in state and self.pool:
            raise ValueError(
                "the checkpoint is of an earlier version, which chose the held-out prompts of the boundary in another "
                "way: some of those to evaluate on may have been trained on. Start a fresh run from its weights"
            )
        measured = set(state.get("pool", ()))
        moved = [one for one in self.evaluated_on if prompt_key(one.prompt) in measured]
        if moved:
            raise ValueError(
                f"{len(moved)} held-out prompts that the checkpoint's run measured the boundary on, and may have "
                f"trained on, are now to evaluate on, first {prompt_text(moved[0].prompt)[:60]!r} ({moved[0].where}): "
                "go on with the held-out rows and the `boundary_fraction` that the run began with, or start a fresh run"
            )

    def _group_key(self, one: CandidateSet) -> str:
        return _digest(self.group_of(one.prompt))


def _candidates(state: dict[str, Any]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(text, finish_reason=FinishReason(ended), token_ids=None if ids is None else tuple(ids))
        for text, ended, ids in zip(state["texts"], state["ended"], state["token_ids"], strict=True)
    )
