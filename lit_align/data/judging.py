"""Scores of a judge for candidates and records, and how well they agree with the labels of the data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lit_align.clock import timed
from lit_align.judges import Judge
from lit_align.judges.base import blaming, require_score_for_each
from lit_align.judges.quality import contradiction_warning
from lit_align.ranks import gather_in_turn, own_share
from lit_align.records import CandidateSet, PreferencePair, Prompt
from lit_align.rows.loading import Record, as_set

_SETS_A_CALL = 32  # judged together: large enough to batch, small enough for a bar that moves


@timed("judging")
def judge_sets(
    judge: Judge, sets: Sequence[CandidateSet], progress: Callable[[int], object] | None = None
) -> list[CandidateSet]:
    """The sets with the judge's scores; NaN if it abstained.

    Args:
        judge: scores the candidates.
        sets: what to score.
        progress: called with the number of candidates scored since the last call.

    Raises:
        ValueError: if the judge does not give one score for each candidate.
    """
    scored: list[CandidateSet] = []
    for start in range(0, len(sets), _SETS_A_CALL):
        batch = sets[start : start + _SETS_A_CALL]
        with blaming(judge, batch[0].prompt, len(batch)):
            scores = judge.score(batch)
        require_score_for_each(judge, batch, scores)
        scored += map(_with_scores, batch, scores)
        if progress is not None:
            progress(sum(len(candidates.candidates) for candidates in batch))
    return scored


def _with_scores(candidates: CandidateSet, scores: Sequence[float]) -> CandidateSet:
    scored = (replace(c, score=float(score)) for c, score in zip(candidates.candidates, scores, strict=True))
    return replace(candidates, candidates=tuple(scored))


def labels_of(record: Record) -> list[tuple[str, str]]:
    """(better, worse) answer, as the data have it: chosen and rejected, or the best and the worst scored candidate."""
    if isinstance(record, PreferencePair):
        return [(record.chosen.text, record.rejected.text)]
    scored = [candidate for candidate in record.candidates if candidate.score is not None]
    ranked = sorted(scored, key=lambda candidate: candidate.score or 0.0)
    tied = not ranked or ranked[0].score == ranked[-1].score
    return [] if tied else [(ranked[-1].text, ranked[0].text)]


def labels_by_prompt(records: Iterable[Record]) -> dict[Prompt, list[tuple[str, str]]]:
    """The (better, worse) answers to each prompt."""
    labels: defaultdict[Prompt, list[tuple[str, str]]] = defaultdict(list)
    for record in records:
        labels[record.prompt] += labels_of(record)
    return dict(labels)


def agreement(labels: Sequence[tuple[str, str]], judged: CandidateSet) -> list[float]:
    """For each label with scores: 1 if they agree with it, 0 if they turn it round, 0.5 for a tie.

    Args:
        labels: (better, worse) answers of the prompt.
        judged: candidates of the prompt with a judge's scores.
    """
    scores = {candidate.text: candidate.score for candidate in judged.candidates}
    pairs = [(scores.get(better), scores.get(worse)) for better, worse in labels]
    margins = [better - worse for better, worse in pairs if better is not None and worse is not None]
    return [0.5 + 0.5 * float(np.sign(margin)) for margin in margins if not math.isnan(margin)]


def judge_records(
    records: Sequence[Record], judge: Judge | None, relabel: bool, progress: Callable[[int], object] | None = None
) -> list[Record]:
    """Scores what has to be scored: everything with `relabel`, else candidate sets that lack scores.

    The ranks of a run share the work.

    Raises:
        ValueError: if there is something to score and no judge.
    """
    indices = [i for i, record in enumerate(records) if needs_judge(record, judge, relabel)]
    if not indices:
        return list(records)
    if judge is None:
        needy = "relabel: true" if relabel else f"{records[indices[0]].where}: a candidate set without scores"
        raise ValueError(f"{needy} needs a judge: set the data's `judge`, or give each candidate a `score`")
    scored = gather_in_turn(judge_sets(judge, [as_set(records[i]) for i in own_share(indices)], progress))
    judged = list(records)
    for index, answer in zip(indices, scored, strict=True):
        judged[index] = answer
    _warn_of_contradiction(judge, [(records[i].prompt, labels_of(records[i]), as_set(judged[i])) for i in indices])
    return judged


def _warn_of_contradiction(judge: Judge, judged: Sequence[tuple[Prompt, list[tuple[str, str]], CandidateSet]]) -> None:
    """Warns of a judge that scores labelled data anew and turns the labels round."""
    agreements: list[float] = []
    prompts: list[Prompt] = []
    for prompt, labels, scored in judged:
        values = agreement(labels, scored)
        agreements += values
        prompts += [prompt] * len(values)
    warning = contradiction_warning(agreements, prompts)
    if warning is not None:
        rank_zero_warn(f"the judge {judge.identity}: {warning}")


def needs_judge(record: Record, judge: Judge | None, relabel: bool) -> bool:
    """Whether a record is scored before pairs are made of it."""
    return bool(as_set(record).candidates) and (relabel or _lacks_scores(record, judge))


def _lacks_scores(record: Record, judge: Judge | None) -> bool:
    """Without a judge a set is usable if any candidate has a score; with one, the judge fills each gap."""
    if isinstance(record, PreferencePair):
        return False
    has_score = [candidate.score is not None for candidate in record.candidates]
    return not any(has_score) if judge is None else not all(has_score)
