"""Sources to records, records to candidate sets, and the split by prompt. Free of tokenizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.console import note, show_activity
from lit_align.records import CandidateSet, PreferencePair, Prompt, prompt_identity
from lit_align.rows.alike import normal_form
from lit_align.rows.parse import parse_row
from lit_align.rows.reading import BadRow, RowSource, describe_source, read_rows
from lit_align.seeding import derive_seed

OnBadRow = Literal["error", "skip"]
Record = CandidateSet | PreferencePair
_EXAMPLES = 3


class SkipLog:
    """Raises bad rows, or counts them and keeps a few for the message.

    Args:
        on_bad_row: "error" raises the first one; "skip" counts each as `bad_row/REASON`.
        counts: where they are counted.

    Attributes:
        errors: those that were skipped.
    """

    def __init__(self, on_bad_row: OnBadRow, counts: Counter[str]) -> None:
        if on_bad_row not in ("error", "skip"):
            raise ValueError(f"expected on_bad_row to be 'error' or 'skip', got {on_bad_row!r}")
        self.on_bad_row = on_bad_row
        self.counts = counts
        self.errors: list[BadRow] = []

    def add(self, error: BadRow) -> None:
        if self.on_bad_row == "error":
            raise error
        self.errors.append(error)
        self.counts[f"bad_row/{error.reason}"] += 1

    def __str__(self) -> str:
        counted = Counter(error.reason for error in self.errors).most_common()
        reasons = ", ".join(f"{reason}: {count}" for reason, count in counted)
        examples = "; ".join(map(str, self.errors[:_EXAMPLES]))
        return f"skipped {len(self.errors)} bad rows ({reasons}), such as {examples}"

    def warn(self) -> None:
        if self.errors:
            rank_zero_warn(str(self), stacklevel=3)


def load_records(
    source: RowSource,
    *,
    split: str = "train",
    name: str | None = None,
    on_bad_row: OnBadRow = "error",
    counts: Counter[str] | None = None,
    bar: bool = False,
    prompts_alone: bool = False,
    bad_rows: list[BadRow] | None = None,
) -> list[Record]:
    """All records of a source.

    Args:
        source: see :func:`~lit_align.rows.reading.read_rows`.
        split: the split of a hub data set or folder.
        name: the configuration of a hub data set.
        on_bad_row: whether a bad row is an error or a counted skip.
        counts: `rows`, `prompt_only`, `bad_row/REASON`, `unused_column/NAME` and `unused_key/NAME` are counted here.
        bar: whether to show a progress bar.
        prompts_alone: whether a row may have a prompt and no completion, which makes a set without candidates; it is
            counted as `prompt_only`.
        bad_rows: the rows that were skipped are added here.

    Raises:
        BadRow: for a bad row, with its file and row.
        ValueError: if no row is left.
    """
    counts = Counter() if counts is None else counts
    log = SkipLog(on_bad_row, counts)
    records: list[Record] = []
    with show_activity(None, "reading", "rows", bar) as activity:
        for row, where in read_rows(source, split, name):
            activity.update()
            counts["rows"] += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                records.append(parse_row(row, where, prompts_alone, counts))
            except BadRow as error:
                log.add(error)
    if not records:
        raise ValueError(f"expected rows in {describe_source(source)}, got none" + (f": {log}" if log.errors else ""))
    log.warn()
    if bad_rows is not None:
        bad_rows += log.errors
    alone = sum(not as_set(record).candidates for record in records)
    if alone:
        counts["prompt_only"] += alone
        note(
            f"{alone} of {counts['rows']} rows in {describe_source(source)} are prompts alone: "
            "on-policy rounds answer them"
        )
    return records


@dataclass(frozen=True)
class Source:
    """Where rows come from; the arguments of :func:`load_records`."""

    rows: RowSource
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


def load_sets(source: RowSource, **options: Any) -> list[CandidateSet]:
    """All records of a source as candidate sets, one for each prompt.

    Args:
        source: see :func:`~lit_align.rows.reading.read_rows`.
        options: those of :func:`load_records`.
    """
    return merge_sets(load_records(source, **options))


def as_set(record: Record) -> CandidateSet:
    """A candidate set as it is; a pair as the set of its two completions."""
    if isinstance(record, CandidateSet):
        return record
    return CandidateSet(record.prompt, (record.chosen, record.rejected), record.row, record.where)


def merge_sets(records: Iterable[Record]) -> list[CandidateSet]:
    """One set for each prompt, with the distinct candidates of all its records, in the order of first sight."""
    merged: dict[Prompt, CandidateSet] = {}
    for candidates in map(as_set, records):
        before = merged.get(candidates.prompt)
        if before is None:
            merged[candidates.prompt] = candidates
            continue
        texts = {(candidate.text, candidate.turn) for candidate in before.candidates}
        new = tuple(candidate for candidate in candidates.candidates if (candidate.text, candidate.turn) not in texts)
        merged[candidates.prompt] = replace(before, candidates=before.candidates + new)
    return list(merged.values())


def split_by_prompt(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(train, held out): a share of the prompts, with all their records, is held out.

    Which prompts depends on the seed and the prompts, not on the order of the rows. Prompts that differ in blanks,
    case or Unicode form count as one (:func:`~lit_align.rows.alike.normal_form`).

    Args:
        records: the records to split.
        fraction: share of the prompts to hold out, in [0, 1); above 0 at least one prompt.
        seed: the run's seed.
    """
    prompts = {record.prompt for record in records}
    forms = {prompt: normal_form(prompt) for prompt in prompts}
    texts: dict[str, str] = {}  # the first text of each form: a prompt without variants is drawn by its own
    for prompt, form in forms.items():
        identity = prompt_identity(prompt)
        texts[form] = min(texts.get(form, identity), identity)
    ranked = sorted(texts, key=lambda form: (derive_seed(seed, "held out", texts[form]), form))
    count = max(1, round(fraction * len(ranked))) if fraction > 0 else 0
    if count and count >= len(ranked):
        raise ValueError(
            f"expected val_fraction {fraction} to leave training prompts, got {len(ranked)} prompts in all"
        )
    held_out_forms = set(ranked[:count])
    train: list[Record] = []
    held_out: list[Record] = []
    for record in records:
        (held_out if forms[record.prompt] in held_out_forms else train).append(record)
    return train, held_out


def without_prompts(records: Sequence[Record], held_out: Iterable[Record]) -> list[Record]:
    """The records whose prompts are not held out: none equal to one of them but for blanks, case or Unicode form."""
    prompts = {record.prompt for record in held_out}
    forms = set(map(normal_form, prompts))
    return [record for record in records if normal_form(record.prompt) not in forms]


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
        fraction: share of the training prompts to hold out if `val` is None.
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
