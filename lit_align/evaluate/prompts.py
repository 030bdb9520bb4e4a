"""The prompts to evaluate a run on: none that it was trained on, and none that it measured its stage on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lit_align.data import AlignmentDataModule
from lit_align.data.held_out import HeldOut
from lit_align.data.static import boundary_prompts
from lit_align.records import CandidateSet
from lit_align.rows.alike import draw_unlike, group_alike, normal_form
from lit_align.rows.loading import load_parts, merge_sets
from lit_align.seeding import derive_seed


@dataclass(frozen=True)
class RunPrompts:
    """The prompts of a run's data, by what the run did with them.

    Args:
        held_out: those to evaluate on, without their static answers.
        trained_on: the normal forms of the training prompts.
        measured_on: the normal forms of the held-out prompts that the boundary was measured on, whose sampled answers
            may have been trained on.
    """

    held_out: Sequence[CandidateSet] = ()
    trained_on: frozenset[str] = frozenset()
    measured_on: frozenset[str] = frozenset()

    def without(self, other: RunPrompts) -> RunPrompts:
        """The same, with what another run was trained and measured on left out as well."""
        trained_on = self.trained_on | other.trained_on
        return RunPrompts(self.held_out, trained_on, (self.measured_on | other.measured_on) - trained_on)


@dataclass(frozen=True)
class ChosenPrompts:
    """The prompts of an evaluation.

    Args:
        sets: without answers, no two of them alike.
        source: where they come from, in words.
        left_out: how many were not taken, by reason.
    """

    sets: list[CandidateSet]
    source: str
    left_out: dict[str, int]


def prompts_of_run(data: AlignmentDataModule, measured: bool) -> RunPrompts:
    """Reads the rows of a run's data and splits them as the fit did. No tokenizer is needed.

    Args:
        data: the run's data module.
        measured: whether the run measured its boundary on held-out prompts.
    """
    records, held_out_records = load_parts(
        *data.sources(), data.val_fraction, data.seed, counts=Counter(), val_counts=Counter(), bar=False
    )
    fraction = data.boundary_fraction if data.sampler is not None else 0.0
    kept_to_measure, groups = boundary_prompts(held_out_records, fraction)
    held_out = HeldOut(merge_sets(held_out_records), kept_to_measure, groups)
    # A run whose held-out prompts serve both uses measured on all of them.
    measured_on = held_out.measured_on if measured or held_out.boundary_sets else []
    measured_forms = _forms(measured_on)
    return RunPrompts(
        [
            replace(candidates, candidates=())
            for candidates in held_out.evaluated_on
            if normal_form(candidates.prompt) not in measured_forms
        ],
        _forms(merge_sets(records)),
        measured_forms,
    )


def choose_prompts(
    of_run: RunPrompts, offered: Sequence[CandidateSet] | None, source: str, count: int | None, seed: int
) -> ChosenPrompts:
    """Chooses what to evaluate on.

    Args:
        of_run: the run's own prompts.
        offered: the prompts of a file; None takes the run's held-out ones.
        source: the file, for messages.
        count: prompts at most; None takes all.
        seed: draws them.

    Raises:
        ValueError: no prompt is left.
    """
    if offered is None:
        offered = of_run.held_out
        source = "held-out prompts of the run's data"
    forms = [normal_form(candidates.prompt) for candidates in offered]
    unseen = [
        candidates
        for candidates, form in zip(offered, forms, strict=True)
        if form not in of_run.trained_on and form not in of_run.measured_on
    ]
    left_out = {
        "trained on": sum(form in of_run.trained_on for form in forms),
        "measured on": sum(form in of_run.measured_on - of_run.trained_on for form in forms),
    }
    if not unseen:
        raise ValueError(_nothing_left(of_run, len(offered), left_out))
    groups = group_alike(candidates.prompt for candidates in unseen)
    unlike = len(set(groups.values()))
    rng = random.Random(derive_seed(seed, "evaluate", "prompts"))
    sets = draw_unlike(unseen, groups.__getitem__, unlike if count is None else min(count, unlike), rng)
    left_out |= {"like another": len(unseen) - unlike, "beyond the limit": unlike - len(sets)}
    return ChosenPrompts(sets, source, {reason: number for reason, number in left_out.items() if number})


def _forms(sets: Iterable[CandidateSet]) -> frozenset[str]:
    return frozenset(normal_form(candidates.prompt) for candidates in sets)


def _nothing_left(of_run: RunPrompts, offered: int, left_out: dict[str, int]) -> str:
    if offered:
        return (
            f"no prompt is left to evaluate on: of {offered}, the run was trained on {left_out['trained on']} and "
            f"measured its boundary on {left_out['measured on']}. Give others with --prompts FILE"
        )
    if of_run.measured_on:
        return (
            f"the run measured its boundary on all of its {len(of_run.measured_on)} held-out prompts, so none is left "
            "to evaluate on: give others with --prompts FILE; the next run keeps some apart with the data's "
            "`boundary_fraction` above 0 and a sampler"
        )
    return (
        "the run has no held-out prompts: give prompts with --prompts FILE (JSONL rows with `prompt`); the next run "
        "holds some out with the data's `val` or `val_fraction`"
    )
