"""The boundary score of two piles of candidates."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from lit_align.boundary.data import merged_by_prompt
from lit_align.boundary.result import BoundaryResult
from lit_align.boundary.score import BoundaryScore
from lit_align.judges.base import Judge
from lit_align.records import CandidateSet, prompt_text
from lit_align.rows.alike import normal_form

_PROMPTS_AT_ONCE = 64


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

    Sets are matched by prompt; several sets of one prompt are taken together. Prompts with on-policy
    candidates alone are left out with a warning that counts them; off-policy sets without a partner are
    not asked for.

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
    start = time.perf_counter()
    pairs = matched(on, off)
    metric = BoundaryScore(confidence)
    if device is not None:
        metric = metric.to(device)
    metric.update([])  # a rank without prompts takes part in the reduction
    with tqdm(total=len(pairs), desc="judging", unit="prompt", leave=False, disable=None if progress else True) as bar:
        for at in range(0, len(pairs), _PROMPTS_AT_ONCE):
            batch = pairs[at : at + _PROMPTS_AT_ONCE]
            metric.update(judge.cross_votes([a for a, _ in batch], [b for _, b in batch]))
            bar.update(len(batch))
    return metric.result(seconds=time.perf_counter() - start)


def matched(on: Iterable[CandidateSet], off: Iterable[CandidateSet]) -> list[tuple[CandidateSet, CandidateSet]]:
    """The on-policy and the off-policy set of each prompt that has both, in the order of `on`.

    Blanks, letter case and Unicode form make no other prompt (:func:`~lit_align.rows.alike.normal_form`).
    """
    mine, static = merged_by_prompt(on, normal_form), merged_by_prompt(off, normal_form)
    alone = [candidates for prompt, candidates in mine.items() if prompt not in static]
    if alone:
        warnings.warn(
            f"{len(alone)} of {len(mine)} on-policy prompts have no off-policy candidates and are left out, first "
            f"{_named(alone[0])}; prompts match where they are equal but for blanks, case and Unicode form",
            stacklevel=2,
        )
    return [
        (candidates, replace(static[prompt], prompt=candidates.prompt))
        for prompt, candidates in mine.items()
        if prompt in static
    ]


def require_matched(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[tuple[CandidateSet, CandidateSet]]:
    """What :func:`matched` gives.

    Raises:
        ValueError: no prompt has candidates on both sides.
    """
    sides = [[candidates for candidates in side if candidates.candidates] for side in (on, off)]
    if not all(sides):
        raise ValueError(f"expected candidates on both sides, got none that are {'off' if sides[0] else 'on'}-policy")
    mine, static = sides
    if not {normal_form(a.prompt) for a in mine} & {normal_form(b.prompt) for b in static}:
        raise ValueError(
            "expected on-policy and off-policy candidates of the same prompts, got no prompt with both: the first "
            f"on-policy prompt is {_named(mine[0])}, the first off-policy prompt {_named(static[0])}"
        )
    return matched(mine, static)


def _named(candidates: CandidateSet) -> str:
    return f"{prompt_text(candidates.prompt)[:60]!r} ({candidates.where})"
