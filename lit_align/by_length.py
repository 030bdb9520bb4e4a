"""Batches of texts of similar length, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yields indices of texts in batches of similar length, longest first, so that memory runs out at once or never.

    Example:
        >>> list(batches_by_length([2, 9, 5], size=2))
        [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), size):
        yield order[start : start + size]
