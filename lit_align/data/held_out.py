"""The held-out prompts: some to measure the boundary on, the others to evaluate on."""

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


def choose_boundary_prompts(
    prompts: Iterable[Prompt], groups: Mapping[Prompt, str], fraction: float
) -> frozenset[Prompt]:
    """The prompts that the boundary is measured on and that may be trained on afterwards.

    Groups of prompts that are alike stay together. They are ranked by a hash of their leader, and the first of them
    are chosen, as near to `fraction` as their number allows, at least one and never all. So the split depends on
    the set of prompts and on `fraction`, not on their order or a seed. A prompt that is added moves at most one other
    group across it; :meth:`HeldOut.load_state_dict` finds a run that cannot go on after that.

    Args:
        prompts: those that can be measured on.
        groups: the group of each held-out prompt, see :func:`~lit_align.rows.alike.group_alike`.
        fraction: the share of the groups to choose, in [0, 1).
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
    """Knows which held-out prompts are measured on, evaluated on and trained on, and queues samples for a round.

    Args:
        sets: all held-out prompts with their static candidates.
        boundary_prompts: those to measure the boundary on. Empty: all prompts serve both uses, and no samples are
            queued.
        groups: the group of each prompt that is like another one; any other is a group by itself.
        labels: (better, worse) answers to a prompt, as the data have it.

    Attributes:
        evaluated_on: the prompts of the val pairs and the win rate.
        boundary_sets: the prompts of the boundary, trained on or not.
        queued: candidates for the next on-policy round, of all ranks.
        sampled_at: the optimizer step at which they were sampled.
    """

    def __init__(
        self,
        sets: Sequence[CandidateSet],
        boundary_prompts: frozenset[Prompt],
        groups: Mapping[Prompt, str] | None = None,
        labels: Labels | None = None,
    ) -> None:
        self.evaluated_on = [candidates for candidates in sets if candidates.prompt not in boundary_prompts]
        self.boundary_sets = [candidates for candidates in sets if candidates.prompt in boundary_prompts]
        self.labels: Labels = labels or {}
        self._groups = groups or {}
        self._trained_groups: set[str] = set()
        self.queued: list[CandidateSet] = []
        self.sampled_at = 0

    def group_of(self, prompt: Prompt) -> str:
        """The group of prompts that are alike, see :func:`~lit_align.rows.alike.group_alike`."""
        return self._groups.get(prompt) or normal_form(prompt)

    @property
    def measured_on(self) -> list[CandidateSet]:
        """The prompts of the boundary that were not trained on, nor one like them."""
        if not self.boundary_sets:
            return self.evaluated_on
        return [
            candidates for candidates in self.boundary_sets if self._group_key(candidates) not in self._trained_groups
        ]

    @property
    def unlike(self) -> int:
        """How many of the prompts to measure on a measurement can take: one of each group."""
        return len({self._group_key(candidates) for candidates in self.measured_on if candidates.candidates})

    def __str__(self) -> str:
        measured = len(self.measured_on)
        evaluated = len(self.evaluated_on)
        groups = "" if self.unlike == measured else f" (one of each of {self.unlike} groups of prompts that are alike)"
        return f"Held-out prompts: {measured} to measure the boundary on{groups}, {evaluated} to evaluate on"

    def queue(self, sets: Sequence[CandidateSet], step: int) -> None:
        """Keeps fresh candidates for the next on-policy round, in place of any that were queued before.

        Args:
            sets: this rank's; all ranks call it.
            step: the optimizer step at which they were sampled.

        Raises:
            ValueError: for a prompt that the boundary may not use: it would end up in training.
        """
        if not self.boundary_sets:
            return
        prompts = [candidates.prompt for candidates in self.boundary_sets]
        known_prompts = set(prompts)
        foreign = [candidates for candidates in sets if candidates.prompt not in known_prompts]
        if foreign:
            raise ValueError(
                f"expected candidates for prompts of the data's `measured_on`, got {prompt_text(foreign[0].prompt)!r} "
                f"({foreign[0].where}): evaluation prompts are never trained on"
            )
        by_prompt: dict[Prompt, CandidateSet] = {}
        for of_rank in gather(list(sets)):
            by_prompt.update((candidates.prompt, candidates) for candidates in of_rank)
        self.queued = [by_prompt[prompt] for prompt in prompts if prompt in by_prompt]  # in the order of one process
        self.sampled_at = step

    def clear_queue(self) -> None:
        """Forgets the queued candidates."""
        self.queued = []

    def mark_trained(self, sets: Iterable[CandidateSet]) -> None:
        """Leaves prompts that were trained on out of later measurements, as long as a quarter of all remains."""
        self._trained_groups |= set(map(self._group_key, sets))
        if 4 * len(self.measured_on) < len(self.boundary_sets):
            self._trained_groups.clear()
            note(
                f"boundary: most of the {len(self.boundary_sets)} prompts it is measured on have become training "
                "prompts; from here on all are measured on again. More held-out prompts keep the two apart."
            )

    def state_dict(self) -> dict[str, Any]:
        """The boundary's prompts, the groups of them that were trained on, and the queue, in plain types."""
        return {
            "pool": sorted(prompt_key(candidates.prompt) for candidates in self.boundary_sets),
            "spent": sorted(self._trained_groups),
            "offered": list(map(_pack, self.queued)),
            "offered_at": self.sampled_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from where `state` was taken, without prompts that are no longer held out.

        Raises:
            ValueError: if the run may have been trained on prompts of the evaluation.
        """
        self._require_unseen(state)
        by_key = {prompt_key(candidates.prompt): candidates for candidates in self.boundary_sets}
        self._trained_groups = set(state["spent"]) & set(map(self._group_key, self.boundary_sets))
        self.sampled_at = state["offered_at"]
        self.queued = [
            replace(by_key[packed["prompt"]], candidates=_unpack(packed))
            for packed in state["offered"]
            if packed["prompt"] in by_key
        ]
        lost = len(state["offered"]) - len(self.queued)
        if lost:
            rank_zero_warn(
                f"the checkpoint has sampled candidates for {lost} prompts that are no longer held out for the "
                "boundary: they are left out, and the run goes on, but not as before"
            )

    def _require_unseen(self, state: dict[str, Any]) -> None:
        if "pool" not in state and self.boundary_sets:
            raise ValueError(
                "the checkpoint is of an earlier version, which chose the held-out prompts of the boundary in another "
                "way: some of those to evaluate on may have been trained on. Start a fresh run from its weights"
            )
        measured = set(state.get("pool", ()))
        moved = [candidates for candidates in self.evaluated_on if prompt_key(candidates.prompt) in measured]
        if moved:
            raise ValueError(
                f"{len(moved)} held-out prompts that the checkpoint's run measured the boundary on, and may have "
                f"trained on, are now to evaluate on, first {prompt_text(moved[0].prompt)[:60]!r} ({moved[0].where}): "
                "go on with the held-out rows and the `boundary_fraction` that the run began with, or start a fresh run"
            )

    def _group_key(self, candidates: CandidateSet) -> str:
        return _digest(self.group_of(candidates.prompt))


def _pack(candidates: CandidateSet) -> dict[str, Any]:
    """Queued candidates in plain types, as a checkpoint holds them."""
    answers = candidates.candidates
    return {
        "prompt": prompt_key(candidates.prompt),
        "texts": [answer.text for answer in answers],
        "ended": [answer.finish_reason.value for answer in answers],
        "token_ids": [None if answer.token_ids is None else list(answer.token_ids) for answer in answers],
    }


def _unpack(packed: dict[str, Any]) -> tuple[Candidate, ...]:
    """The candidates of what :func:`_pack` gave."""
    columns = (packed["texts"], packed["ended"], packed["token_ids"])
    return tuple(
        Candidate(text, finish_reason=FinishReason(reason), token_ids=None if ids is None else tuple(ids))
        for text, reason, ids in zip(*columns, strict=True)
    )
