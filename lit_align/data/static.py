"""The static data of a run: from files to tokenised pairs and candidate sets, training and held-out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from lit_align.batch import TokenizedPair
from lit_align.console import Activity
from lit_align.data.encoder import Encoder
from lit_align.data.held_out import HeldOut, choose_boundary_prompts
from lit_align.data.judging import judge_records, labels_by_prompt
from lit_align.data.row_trace import RowTrace, SourceRow
from lit_align.data.selection import PairSelector
from lit_align.data.token_file import TokenFile
from lit_align.judges import Judge
from lit_align.policy.cache import cache_dir
from lit_align.records import CandidateSet, PreferencePair, Prompt
from lit_align.rows.alike import group_alike
from lit_align.rows.loading import OnBadRow, Record, SkipLog, Source, as_set, load_parts, merge_sets
from lit_align.rows.reading import BadRow
from lit_align.seeding import derive_seed

Progress = Callable[[int | None, str, str], Activity]
_RECORDS_AT_ONCE = 256
KEPT_TO_MEASURE = "kept_to_measure_the_boundary"
"""Why a held-out row gives no pair: the data's `boundary_fraction`."""


@dataclass(frozen=True)
class Static:
    """The static data of a run, tokenised.

    Args:
        pairs: the tokenised training pairs.
        sets: the training prompts with their candidates.
        val_pairs: the tokenised held-out pairs, without the prompts of the boundary.
        held_out: the held-out prompts with their candidates.
        prompts: who may use which of them.
        val_rows: the rows of the held-out pairs, and those that gave none.
    """

    pairs: list[TokenizedPair]
    sets: list[CandidateSet]
    val_pairs: list[TokenizedPair]
    held_out: list[CandidateSet]
    prompts: HeldOut
    val_rows: RowTrace


def make_static(
    train: Source,
    val: Source | None,
    val_fraction: float,
    boundary_fraction: float,
    maker: PairMaker,
    counts: Counter[str],
    bar: bool,
) -> Static:
    """Reads the training and the held-out rows and makes pairs of them.

    Args:
        train: the training rows.
        val: held-out rows.
        val_fraction: share of the training prompts to hold out if `val` is None.
        boundary_fraction: share of the held-out prompts to keep for the boundary, see
            :func:`~lit_align.data.held_out.choose_boundary_prompts`.
        maker: makes the pairs.
        counts: of what was read and dropped; those of held-out rows begin with `val/`.
        bar: whether to show progress bars.
    """
    val_counts: Counter[str] = Counter()
    val_rows = RowTrace()
    bad_rows: list[BadRow] = []
    records, val_records = load_parts(train, val, val_fraction, maker.seed, counts, val_counts, bar, bad_rows)
    pairs, sets = maker.make(records, counts)
    measured, groups = boundary_prompts(val_records, boundary_fraction)
    val_pairs, held_out = maker.make(val_records, val_counts, lambda prompt: prompt not in measured, val_rows)
    val_rows.add_unreadable(bad_rows)
    prompts = HeldOut(held_out, measured, groups, labels_by_prompt(val_records))
    if measured:
        val_counts["prompts_measured"] = len(prompts.boundary_sets)
        val_counts["prompts_evaluated"] = len(prompts.evaluated_on)
    counts.update({f"val/{key}": count for key, count in val_counts.items()})
    return Static(pairs, sets, val_pairs, held_out, prompts, val_rows)


def boundary_prompts(held_out: list[Record], fraction: float) -> tuple[frozenset[Prompt], dict[Prompt, str]]:
    """The held-out prompts that are kept for the boundary, and the group of each held-out prompt.

    Args:
        held_out: the held-out records.
        fraction: the share of them to keep, see :func:`~lit_align.data.held_out.choose_boundary_prompts`.
    """
    answered = {record.prompt for record in held_out if as_set(record).candidates}  # what can be measured on
    groups = group_alike({record.prompt for record in held_out})
    return choose_boundary_prompts(answered, groups, fraction), groups


@dataclass(frozen=True)
class PairMaker:
    """Judges, pairs and tokenises records.

    Args:
        encoder: tokenises.
        selector: makes pairs of scored candidates.
        judge: scores candidates that have no score, and everything with `relabel`.
        relabel: whether scores of the data are replaced.
        on_bad_row: for prompts that the chat template refuses.
        seed: the run's seed.
        progress: makes a progress bar of a total, a label and a unit.
        needs_target: whether the loss asks for each row's own target.
    """

    encoder: Encoder
    selector: PairSelector
    judge: Judge | None
    relabel: bool
    on_bad_row: OnBadRow
    seed: int
    progress: Progress
    needs_target: bool

    def make(
        self,
        records: list[Record],
        counts: Counter[str],
        paired: Callable[[Prompt], bool] = lambda _: True,
        trace: RowTrace | None = None,
    ) -> tuple[list[TokenizedPair], list[CandidateSet]]:
        """The tokenised pairs of the records, and one candidate set for each prompt that can be used.

        Args:
            records: training or held-out ones.
            counts: each dropped pair is counted under its reason; `pairs` and `prompts` count those kept.
            paired: whether a prompt's records are to become pairs.
            trace: takes the row of each pair, and the rows that gave none.
        """
        with self.progress(None, "judging", "answers") as bar:
            records = judge_records(records, self.judge, self.relabel, bar.update)
        log = SkipLog(self.on_bad_row, counts)
        tokens = TokenFile(cache_dir() / "tokens")
        kept: list[Record] = []
        with self.progress(len(records), "tokenising", "rows") as bar:
            for start in range(0, len(records), _RECORDS_AT_ONCE):
                batch = records[start : start + _RECORDS_AT_ONCE]
                selected = [self._select(record, place, paired) for place, record in enumerate(batch, start)]
                self.encoder.tokenise_ahead(list(chain.from_iterable(made for made, _ in selected)))
                for place, (record, (made, of_record)) in enumerate(zip(batch, selected, strict=True), start):
                    encoded, reasons = self._encode(record, made, of_record, log)
                    counts.update(of_record)
                    if encoded is not None:
                        tokens.add(encoded)
                        kept.append(record)
                    if trace is not None:
                        why = reasons if paired(record.prompt) else Counter([KEPT_TO_MEASURE])
                        trace.add(SourceRow.of(place, record), len(made), len(encoded or ()), why)
                bar.update(len(batch))
        self.encoder.tokenise_ahead([])
        log.warn()
        sets = merge_sets(kept)
        pairs = tokens.take()
        counts["pairs"] += len(pairs)
        counts["prompts"] += len(sets)
        return pairs, sets

    def _select(
        self, record: Record, place: int, paired: Callable[[Prompt], bool]
    ) -> tuple[list[PreferencePair], Counter[str]]:
        """The pairs of a record, and what was counted on the way."""
        counts: Counter[str] = Counter()
        seed = derive_seed(self.seed, "select", place)
        return pairs_of(record, self.selector, seed, counts) if paired(record.prompt) else [], counts

    def _encode(
        self, record: Record, pairs: Sequence[PreferencePair], counts: Counter[str], log: SkipLog
    ) -> tuple[list[TokenizedPair] | None, Counter[str]]:
        """As :func:`encode_record`, and why pairs may be lacking; a bad row goes to the log."""
        try:
            return encode_record(record, pairs, self.encoder, counts, self.needs_target), counts
        except BadRow as error:
            log.add(error)
            return None, Counter([f"bad_row/{error.reason}"])


def pairs_of(record: Record, selector: PairSelector, seed: int, counts: Counter[str]) -> list[PreferencePair]:
    """The pairs of a record: a pair itself, those that the selector makes of candidates, none without candidates."""
    if not as_set(record).candidates:
        return []
    return [record] if isinstance(record, PreferencePair) else selector.select(record, seed, counts)


def encode_record(
    record: Record, pairs: Sequence[PreferencePair], encoder: Encoder, counts: Counter[str], needs_target: bool
) -> list[TokenizedPair] | None:
    """The tokenised pairs of one record; None if its prompt is too long.

    Raises:
        BadRow: the record lacks a target that the loss asks for, or the chat template refuses its prompt.
    """
    try:
        if needs_target:
            _require_target(record)
        encoder.check_record(record, counts)
        if encoder.fits(record.prompt):
            return encoder.encode_pairs(pairs, counts)
    except BadRow as error:
        raise BadRow(record.where, error.reason, error.why) from error
    counts["prompt_too_long"] += 1  # once for each row, however many pairs it makes
    return None


def _require_target(record: Record) -> None:
    target = record.target if isinstance(record, PreferencePair) else record.row.get("target")
    if not isinstance(target, str):
        why = f"the loss asks for each row's own `target`, a text, got {target!r}: add it, or choose another loss"
        raise BadRow(record.where, "no_target", why)
