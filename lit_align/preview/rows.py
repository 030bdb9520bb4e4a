"""Reads rows of the data as a run does, and tells how each is used; no model is loaded."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from lit_align.batch import TokenizedPair
from lit_align.data import AlignmentDataModule
from lit_align.data.encoder import Encoder
from lit_align.data.judging import judge_records, needs_judge
from lit_align.data.static import boundary_prompts, encode_record, pairs_of
from lit_align.judges import Judge
from lit_align.records import Candidate, PreferencePair, Prompt
from lit_align.rows.loading import Record, Source, as_set, load_parts
from lit_align.rows.parse import parse_row
from lit_align.rows.reading import BadRow, read_rows
from lit_align.seeding import derive_seed


@dataclass(frozen=True)
class PreviewPair:
    """Two answers of a row, and how they are used.

    Args:
        pair: the answers; the order of candidates that were not scored means nothing.
        tokens: the tokens that are trained on, also of a pair that is dropped for its length; None if there are none.
        cut: number of tokens cut off the prompt's left end.
        dropped: the name of the reason if the pair is not trained on; empty if it is.
    """

    pair: PreferencePair
    tokens: TokenizedPair | None
    cut: int = 0
    dropped: str = ""


@dataclass(frozen=True)
class PreviewRow:
    """A row, and how it is used.

    Args:
        where: file and number of the row.
        record: the parsed row; None if it cannot be parsed.
        left_out: the reason why the row gives no pair, in words; empty if it gives some.
        pairs: its pairs.
        scored: whether the pairs are the selector's, chosen before rejected.
        counts: counts by name, such as of ties and of unused columns.
    """

    where: str
    record: Record | None = None
    left_out: str = ""
    pairs: list[PreviewPair] = field(default_factory=list)
    scored: bool = True
    counts: Counter[str] = field(default_factory=Counter)


class RowReader:
    """Reads rows of the training or the held-out data and treats them as a run does.

    Args:
        data: the run's data module, before `setup`.
        encoder: the run's encoder.
        needs_target: whether the loss needs each row's own target.
        ask_judge: whether the data's judge scores candidates; None: if it loads no model and asks no server.
    """

    def __init__(
        self, data: AlignmentDataModule, encoder: Encoder, needs_target: bool, ask_judge: bool | None = None
    ) -> None:
        self.data = data
        self.encoder = encoder
        self.needs_target = needs_target
        self._ask_judge = is_free(data.judge) if ask_judge is None else ask_judge
        self._measured: frozenset[Prompt] = frozenset()
        self._unlimited = copy.copy(encoder)
        self._unlimited.max_prompt_tokens = self._unlimited.max_completion_tokens = None

    def rows(self, held_out: bool, first: int, count: int) -> Iterator[PreviewRow]:
        """Yields rows in the order of the data.

        Args:
            held_out: takes the held-out data instead of the training data.
            first: number of the first row, from 1.
            count: the most rows.

        Raises:
            BadRow: a fit would stop at a row.
        """
        train, val = self.data.sources()
        seed = self.data.seed
        fraction = self.data.val_fraction
        parts = load_parts(train, val, fraction, seed, Counter(), Counter(), self.data.run.shows_bars)
        if held_out and self.data.sampler is not None:
            self._measured, _ = boundary_prompts(parts[1], self.data.boundary_fraction)
        own = _index_by_place(parts[1] if held_out else parts[0])
        other = _index_by_place(parts[0] if held_out else parts[1])
        source = (val or train) if held_out else train
        rows = read_rows(source.rows, source.split, source.name)
        if held_out and val is None:  # only the held-out rows of the training file
            rows = (row for row in rows if row[1] in own)
        for row, where in islice(rows, first - 1, first - 1 + count):
            if where in own:
                index, record = own[where]
                yield self._row(record, index, source)
            elif where in other or not isinstance(row, BadRow):
                yield self._left_out(row, where, source)
            else:
                yield PreviewRow(where, left_out=row.why)

    def _left_out(self, row: object, where: str, source: Source) -> PreviewRow:
        assert isinstance(row, dict)
        try:
            record = parse_row(row, where, source.prompts_alone)
        except BadRow as error:
            return PreviewRow(where, left_out=error.why)
        return PreviewRow(where, record, "its prompt is held out, so it is not trained on")

    def _row(self, record: Record, index: int, source: Source) -> PreviewRow:
        counts: Counter[str] = Counter()
        parse_row(record.row, record.where, source.prompts_alone, counts)  # only for its counts
        if record.prompt in self._measured:
            return PreviewRow(record.where, record, "its prompt is kept to measure the stage on, and gives no pair")
        if not as_set(record).candidates:
            return PreviewRow(record.where, record, counts=counts)
        unscored = needs_judge(record, self.data.judge, self.data.relabel)
        if unscored and not self._ask_judge:
            pairs = [self._pair(record, pair) for pair in _neighbours(record)]
            return PreviewRow(record.where, record, pairs=pairs, scored=False, counts=counts)
        (judged,) = judge_records([record], self.data.judge, self.data.relabel)
        selected = pairs_of(judged, self.data.pair_selector, derive_seed(self.data.seed, "select", index), counts)
        return PreviewRow(record.where, judged, pairs=[self._pair(judged, pair) for pair in selected], counts=counts)

    def _pair(self, record: Record, pair: PreferencePair) -> PreviewPair:
        counts: Counter[str] = Counter()
        tokenised = encode_record(record, [pair], self.encoder, counts, self.needs_target)
        whole = self._unlimited.encode_pair(pair)
        if tokenised:
            cut = 0 if isinstance(whole, str) else len(whole.prompt) - len(tokenised[0].prompt)
            return PreviewPair(pair, tokenised[0], cut)
        return PreviewPair(pair, None if isinstance(whole, str) else whole, dropped=next(iter(counts)))


def _index_by_place(records: Sequence[Record]) -> dict[str, tuple[int, Record]]:
    """Records with their index, by file and row."""
    return {record.where: (index, record) for index, record in enumerate(records)}


def is_free(judge: Judge | None) -> bool:
    """Whether a judge can score without loading a model or asking a server."""
    if judge is None or not judge.parts:
        return judge is not None and judge.free
    return all(map(is_free, judge.parts))


def _neighbours(record: Record) -> list[PreferencePair]:
    """Makes pairs of neighbouring candidates, to tokenise them; an odd last one is paired with the first."""
    answers: list[Candidate] = list(as_set(record).candidates)
    seconds = [*answers[1::2], *answers[:1]] if len(answers) % 2 else answers[1::2]
    return [
        PreferencePair(record.prompt, first, second, row=record.row, where=record.where)
        for first, second in zip(answers[::2], seconds, strict=True)
    ]
