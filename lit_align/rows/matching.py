"""Candidate sets brought together by their prompt."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

from lit_align.records import CandidateSet, Prompt, prompt_text
from lit_align.rows.alike import normal_form


def merged_by_prompt(
    sets: Iterable[CandidateSet], key: Callable[[Prompt], Hashable] = lambda prompt: prompt
) -> dict[Hashable, CandidateSet]:
    """One set for each prompt, holding the candidates of all its sets; those without candidates are left out.

    Args:
        sets: any number for a prompt.
        key: what makes two prompts one; by default they must be equal.
    """
    merged: dict[Hashable, CandidateSet] = {}
    for candidates in sets:
        if not candidates.candidates:
            continue
        name = key(candidates.prompt)
        before = merged[name].candidates if name in merged else ()
        merged[name] = replace(merged.get(name, candidates), candidates=before + candidates.candidates)
    return merged


def match_by_prompt(on: Iterable[CandidateSet], off: Iterable[CandidateSet]) -> list[tuple[CandidateSet, CandidateSet]]:
    """The on-policy and the off-policy set of each prompt that has both, in the order of `on`.

    Blanks, letter case and Unicode form make no other prompt (:func:`~lit_align.rows.alike.normal_form`).
    """
    on_policy = merged_by_prompt(on, normal_form)
    off_policy = merged_by_prompt(off, normal_form)
    unmatched = [candidates for prompt, candidates in on_policy.items() if prompt not in off_policy]
    if unmatched:
        warnings.warn(
            f"{len(unmatched)} of {len(on_policy)} on-policy prompts have no off-policy candidates and are left out, "
            f"first {_name(unmatched[0])}; prompts match if they are equal but for blanks, case and Unicode form",
            stacklevel=2,
        )
    return [
        (candidates, replace(off_policy[prompt], prompt=candidates.prompt))
        for prompt, candidates in on_policy.items()
        if prompt in off_policy
    ]


def require_matched(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[tuple[CandidateSet, CandidateSet]]:
    """The pairs of sets of :func:`match_by_prompt`, at least one.

    Raises:
        ValueError: no prompt has candidates on both sides.
    """
    sides = [[candidates for candidates in side if candidates.candidates] for side in (on, off)]
    if not all(sides):
        raise ValueError(f"expected candidates on both sides, got none that are {'off' if sides[0] else 'on'}-policy")
    on_policy, off_policy = sides
    if not {normal_form(a.prompt) for a in on_policy} & {normal_form(b.prompt) for b in off_policy}:
        raise ValueError(
            "expected on-policy and off-policy candidates of the same prompts, got no prompt with both: the first "
            f"on-policy prompt is {_name(on_policy[0])}, the first off-policy prompt {_name(off_policy[0])}"
        )
    return match_by_prompt(on_policy, off_policy)


def _name(candidates: CandidateSet) -> str:
    return f"{prompt_text(candidates.prompt)[:60]!r} ({candidates.where})"
