"""Which row each held-out pair came from, and why other rows gave none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lit_align.records import CandidateSet, PreferencePair, prompt_text
from lit_align.rows.reading import BadRow

_IDS = ("id", "prompt_id")
_NO_LOSS = ("prompt_cut",)


@dataclass(frozen=True)
class SourceRow:
    """A row as its owner knows it.

    Args:
        index: its place, from 0, among the held-out rows that could be read.
        where: its file and row.
        prompt: its prompt as text.
        id: what it has in the column `id`, else in `prompt_id`; None without one.
    """

    index: int
    where: str
    prompt: str
    id: str | int | None = None

    @classmethod
    def of(cls, index: int, record: CandidateSet | PreferencePair) -> SourceRow:
        """The row of a record."""
        value = next((record.row[name] for name in _IDS if record.row.get(name) is not None), None)
        identity = value if value is None or isinstance(value, int) else str(value)
        return cls(index, record.where, prompt_text(record.prompt), identity)

    def as_dict(self) -> dict[str, Any]:
        """For a line of JSON: the id first, if there is one."""
        values = {name: value for name, value in asdict(self).items() if name != "id"}
        return values if self.id is None else {"id": self.id, **values}


@dataclass
class RowTrace:
    """Keeps the row of each pair, and the rows of which nothing or not everything came.

    Attributes:
        of_pairs: the row of each pair, in the order of the pairs.
        dropped: lines of JSON: what :class:`SourceRow` holds, and `dropped`, the reasons. A row that could not be read
            has only `where` and `why`.
    """

    of_pairs: list[SourceRow] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: SourceRow, selected: int, kept: int, reasons: Mapping[str, int]) -> None:
        """Takes what became of a row.

        Args:
            row: the row.
            selected: pairs that were made of it.
            kept: those of them that were tokenised.
            reasons: what was counted on the way; it says why there is no pair, or one is lacking.
        """
        self.of_pairs += [row] * kept
        if kept < max(1, selected):
            named = [reason for reason, count in reasons.items() if count and reason not in _NO_LOSS]
            self.dropped.append({**row.as_dict(), "dropped": named or ["prompt_only"]})

    def add_unreadable(self, errors: Iterable[BadRow]) -> None:
        """Notes rows that could not be read."""
        self.dropped += [
            {"where": error.where, "dropped": [f"bad_row/{error.reason}"], "why": error.why} for error in errors
        ]
