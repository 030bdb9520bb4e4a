"""The held-out prompts: some to measure the boundary on, the others to evaluate on, and what a measurement hands on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.data.ranks import gather
from lit_align.progress import note
from lit_align.records import Candidate, CandidateSet, FinishReason, Prompt, prompt_identity, prompt_text


def set_apart(prompts: Iterable[Prompt], fraction: float) -> frozenset[Prompt]:
    """The prompts that the boundary is measured on and that may be trained on afterwards.

    Whether a prompt is one of them depends on a hash of its text and on `fraction` alone, not on the other prompts,
    their order or a seed.

    Args:
        prompts: all held-out prompts.
        fraction: about the share of them to set apart, in [0, 1).
    """
    known = set(prompts)
    apart = frozenset(prompt for prompt in known if int(prompt_key(prompt), 16) < fraction * 2**64)
    if fraction > 0 and known and not 0 < len(apart) < len(known):
        rank_zero_warn(
            f"{len(known)} held-out prompts are too few to keep those of the boundary apart from those of the "
            "evaluation: all serve both, and what a measurement samples is not trained on. Hold out more, or set the "
            "data's `boundary_fraction: 0` to have it so."
        )
        return frozenset()
    return apart


def prompt_key(prompt: Prompt) -> str:
    """64 bits of a hash of the prompt, as 16 hexadecimal digits."""
    return hashlib.blake2b(prompt_identity(prompt).encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


class HeldOut:
    """Keeps apart what is measured, what is evaluated and what was trained on.

    Args:
        sets: all held-out prompts with their static candidates.
        apart: the prompts of the boundary. None: all prompts serve both ends, and nothing is handed on.

    Attributes:
        evaluated_on: the prompts of the val pairs and the win rate.
        pool: the prompts of the boundary, trained on or not.
        on_offer: candidates for the next on-policy round, of all ranks.
        offered_at: the optimizer step at which they were sampled.
    """

    def __init__(self, sets: Sequence[CandidateSet], apart: frozenset[Prompt]) -> None:
        self.evaluated_on = [one for one in sets if one.prompt not in apart]
        self.pool = [one for one in sets if one.prompt in apart]
        self._spent: set[str] = set()
        self.on_offer: list[CandidateSet] = []
        self.offered_at = 0

    @property
    def measured_on(self) -> list[CandidateSet]:
        """The prompts of the boundary that were not trained on."""
        if not self.pool:
            return self.evaluated_on
        return [one for one in self.pool if prompt_key(one.prompt) not in self._spent]

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
        self._spent |= {prompt_key(one.prompt) for one in sets}
        if 4 * len(self.measured_on) < len(self.pool):
            self._spent.clear()
            note(
                f"boundary: most of the {len(self.pool)} prompts it is measured on have become training prompts; from "
                "here on all are measured on again. More held-out prompts keep the two apart."
            )

    def state_dict(self) -> dict[str, Any]:
        """Spent prompts and candidates on offer, in plain types."""
        offered = [
            {
                "prompt": prompt_key(one.prompt),
                "texts": [candidate.text for candidate in one.candidates],
                "ended": [candidate.finish_reason.value for candidate in one.candidates],
                "token_ids": [None if c.token_ids is None else list(c.token_ids) for c in one.candidates],
            }
            for one in self.on_offer
        ]
        return {"spent": sorted(self._spent), "offered": offered, "offered_at": self.offered_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; prompts that are no longer held out are left out."""
        pool = {prompt_key(one.prompt): one for one in self.pool}
        self._spent = set(state["spent"]) & pool.keys()
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


def _candidates(state: dict[str, Any]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(text, finish_reason=FinishReason(ended), token_ids=None if ids is None else tuple(ids))
        for text, ended, ids in zip(state["texts"], state["ended"], state["token_ids"], strict=True)
    )
