"""A table of the report, and how its cells are grouped and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from experiments.stats import Estimate
from lit_align.markdown import markdown_table

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Table(NamedTuple):
    """A table of texts with a title and a note on how to read it."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return f"### {self.title}\n\n{self.note}\n\n{markdown_table([self.header, *self.rows])}"


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Groups items by a key, in the order in which keys first come."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def signed(estimate: Estimate) -> str:
    """Writes an estimate with its sign, and with its interval if there is one."""
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:+.3f}, {estimate.high:+.3f}]"
    return f"{estimate.value:+.3f}{interval}"
