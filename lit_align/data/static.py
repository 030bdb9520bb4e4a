"""The static data of a run: from files to tokenised pairs and candidate sets, training and held-out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from lit_align.batch import TokenizedPair
from lit_align.data.encoder import Encoder
from lit_align.data.held_out import HeldOut, set_apart
from lit_align.data.judging import encode_records, judge_records, labels_by_prompt
from lit_align.data.row_trace import RowTrace
from lit_align.data.selection import PairSelector
from lit_align.judges import Judge
from lit_align.records import CandidateSet, Prompt
from lit_align.rows.alike import group_alike
from lit_align.rows.loading import (
    OnBadRow,
    Record,
    SkipLog,
    as_set,
    load_records,
    merge_sets,
    split_by_prompt,
    without_prompts,
)
from lit_align.rows.reading import BadRow

Progress = Callable[[int | None, str, str], tqdm]


@dataclass(frozen=True)
class Source:
    """Where rows come from; the arguments of :func:`~lit_align.rows.loading.load_records`."""

    rows: str | list[str]
    split: str
    name: str | None
    on_bad_row: OnBadRow
    prompts_alone: bool = False

    def load(self, counts: Counter[str], bar: bool, bad_rows: list[BadRow] | None = None) -> list[Record]:
        """Its records; rows and skips are counted, and skipped rows added to `bad_rows`."""
        return load_records(
            self.rows,
            split=self.split,
            name=self.name,
            on_bad_row=self.on_bad_row,
            counts=counts,
            bar=bar,
            prompts_alone=self.prompts_alone,
            bad_rows=bad_rows,
        )


@dataclass(frozen=True)
class Static:
    """What :func:`make_static` gives.

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
        val_fraction: share of the training prompts to hold out where `val` is None.
        boundary_fraction: share of the held-out prompts to keep for the boundary, see
            :func:`~lit_align.data.held_out.set_apart`.
        maker: makes the pairs.
        counts: of what was read and dropped; those of held-out rows begin with `val/`.
        bar: whether to show progress bars.
    """
    val_counts: Counter[str] = Counter()
    val_rows, bad_rows = RowTrace(), []  # type: tuple[RowTrace, list[BadRow]]
    records, val_records = load_parts(train, val, val_fraction, maker.seed, counts, val_counts, bar, bad_rows)
    pairs, sets = maker.make(records, counts)
    apart, groups = boundary_prompts(val_records, boundary_fraction)
    val_pairs, held_out = maker.make(val_records, val_counts, lambda prompt: prompt not in apart, val_rows)
    val_rows.unreadable(bad_rows)
    prompts = HeldOut(held_out, apart, groups, labels_by_prompt(val_records))
    if apart:
        val_counts["prompts_measured"], val_counts["prompts_evaluated"] = len(prompts.pool), len(prompts.evaluated_on)
    counts.update({f"val/{key}": count for key, count in val_counts.items()})
    return Static(pairs, sets, val_pairs, held_out, prompts, val_rows)


def boundary_prompts(held_out: list[Record], fraction: float) -> tuple[frozenset[Prompt], dict[Prompt, str]]:
    """The held-out prompts that are kept for the boundary, and the group of each held-out prompt.

    Args:
        held_out: the held-out records.
        fraction: the share of them to keep, see :func:`~lit_align.data.held_out.set_apart`.
    """
    answered = {record.prompt for record in held_out if as_set(record).candidates}  # what can be measured on
    groups = group_alike({record.prompt for record in held_out})
    return set_apart(answered, groups, fraction), groups


def load_parts(
    train: Source,
    val: Source | None,
    fraction: float,
    seed: int,
    counts: Counter[str],
    val_counts: Counter[str],
    bar: bool,
    bad_rows: list[BadRow] | None = None,
) -> tuple[list[Record], list[Record]]:
    """Training and held-out records that share no prompt.

    Args:
        train: the training rows.
        val: held-out rows; training rows of the same prompts, blanks, case and Unicode form aside, are dropped and
            counted as `prompt_held_out`.
        fraction: share of the training prompts to hold out where `val` is None.
        seed: the run's seed.
        counts: of the training rows.
        val_counts: of the held-out rows.
        bar: whether to show progress bars.
        bad_rows: held-out rows that were skipped are added here.
    """
    records = train.load(counts, bar)
    if val is None:
        return split_by_prompt(records, fraction, seed)
    held_out = val.load(val_counts, bar, bad_rows)
    kept = without_prompts(records, held_out)
    counts["prompt_held_out"] += len(records) - len(kept)
    return kept, held_out


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
        """The tokenised pairs of the prompts that are `paired`, and one candidate set for each prompt of use."""
        with self.progress(None, "judging", " answers") as bar:
            records = judge_records(records, self.judge, self.relabel, bar.update)
        log = SkipLog(self.on_bad_row, counts)
        with self.progress(len(records), "tokenising", " rows") as bar:
            pairs, kept = encode_records(
                records,
                self.encoder,
                self.selector,
                self.seed,
                counts,
                log,
                paired,
                self.needs_target,
                bar.update,
                trace,
            )
        log.warn()
        sets = merge_sets(kept)
        counts["prompts"] += len(sets)
        return pairs, sets
