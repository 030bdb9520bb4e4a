"""Candidate sets to scored candidate sets, records to tokenised pairs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lit_align.batch import TokenizedPair
from lit_align.data.encoder import Encoder
from lit_align.data.row_trace import RowTrace, SourceRow
from lit_align.data.selection import PairSelector
from lit_align.judges import Judge
from lit_align.judges.quality import contradiction_warning
from lit_align.ranks import gather_in_turn, own_share
from lit_align.records import CandidateSet, PreferencePair, Prompt
from lit_align.rows.loading import Record, SkipLog, as_set
from lit_align.rows.reading import BadRow
from lit_align.seeding import derive_seed

_SETS_A_CALL = 32  # judged together: large enough to batch, small enough for a bar that moves
_RECORDS_AT_ONCE = 256
KEPT_TO_MEASURE = "kept_to_measure_the_boundary"
"""Why a held-out row gives no pair: the data's `boundary_fraction`."""


def judge_sets(
    judge: Judge, sets: Sequence[CandidateSet], progress: Callable[[int], object] | None = None
) -> list[CandidateSet]:
    """The sets with the judge's scores; NaN where it abstained.

    Args:
        judge: scores the candidates.
        sets: what to score.
        progress: called with the number of candidates scored since the last call.

    Raises:
        ValueError: if the judge does not give one score for each candidate.
    """
    scored: list[CandidateSet] = []
    for start in range(0, len(sets), _SETS_A_CALL):
        some = sets[start : start + _SETS_A_CALL]
        answers = judge.score(some)
        expected = [len(one.candidates) for one in some]
        if [len(answer) for answer in answers] != expected:
            got = [len(answer) for answer in answers]
            raise ValueError(f"expected {judge.identity} to score {expected} candidates of {len(some)} sets, got {got}")
        for one, scores in zip(some, answers, strict=True):
            candidates = tuple(replace(c, score=float(s)) for c, s in zip(one.candidates, scores, strict=True))
            scored.append(replace(one, candidates=candidates))
        if progress is not None:
            progress(sum(expected))
    return scored


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
    """For each label 1 where the scores agree with it, 0 where they turn it round, 0.5 for a tie; without scores none.

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
        one = records[indices[0]]
        what = "relabel: true" if relabel else f"{one.where}: a candidate set without scores"
        raise ValueError(f"{what} needs a judge: set the data's `judge`, or give each candidate a `score`")
    scored = gather_in_turn(judge_sets(judge, [as_set(records[i]) for i in own_share(indices)], progress))
    judged = list(records)
    for index, answer in zip(indices, scored, strict=True):
        judged[index] = answer
    _warn_of_contradiction(judge, [(records[i].prompt, labels_of(records[i]), as_set(judged[i])) for i in indices])
    return judged


def _warn_of_contradiction(judge: Judge, judged: Sequence[tuple[Prompt, list[tuple[str, str]], CandidateSet]]) -> None:
    """Says so where a judge that scores labelled data anew turns the labels round."""
    right = [(prompt, value) for prompt, labels, scored in judged for value in agreement(labels, scored)]
    warning = contradiction_warning([value for _, value in right], [prompt for prompt, _ in right])
    if warning is not None:
        rank_zero_warn(f"the judge {judge.identity}: {warning}")


def needs_judge(record: Record, judge: Judge | None, relabel: bool) -> bool:
    """Whether a record is scored before pairs are made of it."""
    return bool(as_set(record).candidates) and (relabel or _lacks_scores(record, judge))


def _lacks_scores(record: Record, judge: Judge | None) -> bool:
    """Without a judge a set is usable if any candidate has a score; with one, the judge fills each gap."""
    if isinstance(record, PreferencePair):
        return False
    known = [candidate.score is not None for candidate in record.candidates]
    return not any(known) if judge is None else not all(known)


def pairs_of(record: Record, selector: PairSelector, seed: int, counts: Counter[str]) -> list[PreferencePair]:
    """A pair as it is, a scored candidate set through the selector; of a prompt alone, none."""
    if not as_set(record).candidates:
        return []
    return [record] if isinstance(record, PreferencePair) else selector.select(record, seed, counts)


def encode_records(
    records: Sequence[Record],
    encoder: Encoder,
    selector: PairSelector,
    seed: int,
    counts: Counter[str],
    log: SkipLog,
    paired: Callable[[Prompt], bool] = lambda _: True,
    needs_target: bool = False,
    progress: Callable[[int], object] | None = None,
    trace: RowTrace | None = None,
) -> tuple[list[TokenizedPair], list[Record]]:
    """The tokenised pairs of all records, and the records whose prompts can be used.

    Args:
        records: scored where they are candidate sets.
        encoder: tokenises.
        selector: makes pairs of candidate sets.
        seed: the run's seed.
        counts: each dropped pair is counted under its reason; `pairs` counts those kept.
        log: takes the records whose prompt the chat template refuses.
        paired: whether a prompt's records are to become pairs.
        needs_target: whether a record without a target is a bad row.
        progress: called with the number of records done since the last call.
        trace: takes the row of each pair, and the rows that gave none.
    """
    pairs: list[TokenizedPair] = []
    kept: list[Record] = []
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        some = records[start : start + _RECORDS_AT_ONCE]
        counted: list[Counter[str]] = [Counter() for _ in some]
        made = [
            pairs_of(record, selector, derive_seed(seed, "select", place), of_record) if paired(record.prompt) else []
            for place, (record, of_record) in enumerate(zip(some, counted, strict=True), start)
        ]
        encoder.tokenise_ahead([pair for of_record in made for pair in of_record])
        for place, (record, selected, of_record) in enumerate(zip(some, made, counted, strict=True), start):
            tokenised, reasons = _encode_or_skip(record, selected, encoder, of_record, needs_target, log)
            counts.update(of_record)
            if tokenised is not None:
                kept.append(record)
                pairs += tokenised
            if trace is not None:
                reasons = reasons if paired(record.prompt) else Counter([KEPT_TO_MEASURE])
                trace.note(SourceRow.of(place, record), len(selected), len(tokenised or ()), reasons)
        if progress is not None:
            progress(len(some))
    encoder.tokenise_ahead([])
    counts["pairs"] += len(pairs)
    return pairs, kept


def _encode_or_skip(
    record: Record,
    pairs: Sequence[PreferencePair],
    encoder: Encoder,
    counts: Counter[str],
    needs_target: bool,
    log: SkipLog,
) -> tuple[list[TokenizedPair] | None, Counter[str]]:
    """As :func:`encode_record`, and why pairs may be lacking; a bad row goes to the log."""
    try:
        return encode_record(record, pairs, encoder, counts, needs_target), counts
    except BadRow as error:
        log.bad(error)
        return None, Counter([f"bad_row/{error.reason}"])


def encode_record(
    record: Record, pairs: Sequence[PreferencePair], encoder: Encoder, counts: Counter[str], needs_target: bool
) -> list[TokenizedPair] | None:
    """The tokenised pairs of one record; None where its prompt is too long.

    Raises:
        BadRow: the record lacks a target that the loss asks for, or the chat template refuses its prompt.
    """
    try:
        if needs_target:
            _require_target(record)
        encoder.look_at(record, counts)
        if encoder.fits(record.prompt):
            return encode_pairs(pairs, encoder, counts)
    except BadRow as error:
        raise BadRow(record.where, error.reason, error.why) from error
    counts["prompt_too_long"] += 1  # once a row, also where the row makes several pairs or none
    return None


def _require_target(record: Record) -> None:
    target = record.target if isinstance(record, PreferencePair) else record.row.get("target")
    if not isinstance(target, str):
        why = f"the loss asks for each row's own `target`, a text, got {target!r}: add it, or choose another loss"
        raise BadRow(record.where, "no_target", why)


def encode_pairs(pairs: Sequence[PreferencePair], encoder: Encoder, counts: Counter[str]) -> list[TokenizedPair]:
    """The tokenised pairs; each that is dropped is counted under its reason."""
    kept = []
    for pair in pairs:
        encoded = encoder.encode_pair(pair, counts)
        if isinstance(encoded, str):
            counts[encoded] += 1
        else:
            kept.append(encoded)
    return kept
