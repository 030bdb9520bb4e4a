"""Cuts the pairs of an optimizer step into micro-batches of about as many tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from lit_align.console import note
from lit_align.data.trainer_view import TrainerView


def demand_cuttable(batch_tokens: int | None, run: TrainerView) -> None:
    """Refuses `batch_tokens` where it could change nothing, or the loss.

    Raises:
        ValueError: a step has a single micro-batch, or its loss does not take each pair by itself.
    """
    if batch_tokens is None:
        return
    if run.accumulation < 2:
        raise ValueError(
            "data.batch_tokens cuts the pairs of an optimizer step into its micro-batches, but a step has only one: "
            "set trainer.accumulate_grad_batches to 2 or more, or batch_tokens to null"
        )
    if not run.takes_pairs_by_themselves:
        raise ValueError(
            "data.batch_tokens makes micro-batches of unequal numbers of pairs, and the loss of this run depends on "
            "which pairs share one (its `per_pair` is not True): set batch_tokens to null"
        )


class TokenBudget:
    """Cuts steps into micro-batches, and says once if one of them is larger than it should be.

    Args:
        most: the most tokens of a micro-batch.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._said = False

    def cut(self, lengths: Sequence[int], micro_batches: int) -> list[int]:
        """The number of pairs of each micro-batch; `lengths` has the tokens of each pair."""
        counts = cut_evenly(lengths, micro_batches)
        ends = accumulate(counts)
        largest = max(sum(lengths[end - count : end]) for count, end in zip(counts, ends, strict=True))
        if largest > self._most and not self._said:
            self._said = True
            note(
                f"A micro-batch has {largest:,} tokens, more than the {self._most:,} of data.batch_tokens: the "
                f"{len(lengths)} pairs of a step are cut into {micro_batches} micro-batches. Set data.batch_size lower "
                "and trainer.accumulate_grad_batches higher by the same factor."
            )
        return counts


def cut_evenly(lengths: Sequence[int], pieces: int) -> list[int]:
    """Cuts a sequence into pieces whose largest sum is as small as it can be.

    Args:
        lengths: tokens of each pair, at least as many as pieces.
        pieces: the number of pieces, none of them empty.

    Returns:
        The number of pairs of each piece.
    """
    low, high = max(lengths), sum(lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(lengths, middle, 0)) <= pieces:
            high = middle
        else:
            low = middle + 1
    return _fill(lengths, low, pieces)


def _fill(lengths: Sequence[int], most: int, pieces: int) -> list[int]:
    """The numbers of pairs of pieces of `most` tokens at most; of smaller ones if else there were too few of them."""
    counts: list[int] = []
    tokens = most
    for index, length in enumerate(lengths):
        to_begin = pieces - len(counts)
        if tokens + length > most or len(lengths) - index <= to_begin:
            counts.append(0)
            tokens = 0
        counts[-1] += 1
        tokens += length
    return counts
