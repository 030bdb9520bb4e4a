"""One row that holds several prompts, each once, with all of its completions behind it.

    [ prompt 1 | its completion 1 | its completion 2 | ... | prompt 2 | its completion 1 | ... ]

There is no padding. Positions restart behind the prompt for each completion, and each token attends to its prompt and
to its own completion, so it sees exactly what it would see in a row of its own: the log-probs are the same, to
rounding, for the cost of one prompt. All is made on the CPU, with the batch, so that no pass waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_align.on_device import OnDevice

Sizes = Sequence[int]


class Span(NamedTuple):
    """A prompt or a completion in the row: it attends to the tokens of its prompt and, causally, to its own.

    Args:
        size: tokens, at least one.
        prompt: index of its prompt's span; None for a prompt.
        prompt_size: tokens of its prompt; 0 for a prompt.
    """

    size: int
    prompt: int | None
    prompt_size: int


class Layout(OnDevice):
    """Which tokens of a row [1, T] attend to which, as data for an attention function.

    The keys of span i are those of its prompt and its own behind them, and its queries are the last of these keys: a
    key's index there is its position, so a sliding window counts as in a row of its own.

    Args:
        spans: S spans, which cover the row.
        keys: [K] the columns of the keys of all spans, span by span.
        uses: [T, U] the places of each column in `keys`; K where a column is used less than U times.
        query_ends: [S + 1] int32, 0 and the end of each span among the queries.
        key_ends: [S + 1] int32, 0 and the end of each span's keys in `keys`.
        masks: those that all layers of a kind share, kept from one layer to the next.
    """

    def __init__(
        self,
        spans: tuple[Span, ...],
        keys: Tensor,
        uses: Tensor,
        query_ends: Tensor,
        key_ends: Tensor,
        masks: dict[Any, Tensor] | None = None,
    ) -> None:
        self.spans = spans
        self.keys = keys
        self.uses = uses
        self.query_ends = query_ends
        self.key_ends = key_ends
        self.masks = {} if masks is None else masks

    @property
    def most_queries(self) -> int:
        """Tokens of the longest span."""
        return max(span.size for span in self.spans)

    @property
    def most_keys(self) -> int:
        """Keys of the span that has most of them."""
        return max(span.prompt_size + span.size for span in self.spans)


@dataclass(frozen=True, eq=False)
class SharedRows(OnDevice):
    """B prompts with K completions each, as one row of T tokens.

    Args:
        source: [T] where each token's id is in the flattened [B, P] prompts and [B, C_j] completions.
        positions: [1, T] position of each token in its own sequence.
        columns: [N] the column of each completion token: all of completion 1, prompt by prompt, then of completion 2.
        predicting: [N] the columns whose hidden states predict them.
        slots: [N] where each of them is in its flattened [B, C_j].
        counts: tokens of each of the K completions over all prompts, N in sum.
        layout: which tokens attend to which.
    """

    source: Tensor
    positions: Tensor
    columns: Tensor
    predicting: Tensor
    slots: Tensor
    counts: tuple[int, ...]
    layout: Layout


def demand_prompts(sizes: Sizes) -> None:
    """Refuses an empty prompt: nothing would predict the first token of its completion.

    Raises:
        ValueError: a prompt is empty.
    """
    if not all(sizes):
        raise ValueError("Every prompt needs at least one token, but one of the batch is empty.")


def lay_out(prompts: Sizes, completions: Sequence[Sizes], widths: Sizes) -> SharedRows:
    """Lays out the completions of each prompt behind it.

    Args:
        prompts: tokens of each of the B prompts, at least one.
        completions: for each of K completions the B numbers of its tokens.
        widths: the padded widths P, C_1, ..., C_K of the tensors that the ids come from.

    Raises:
        ValueError: a prompt is empty.
    """
    demand_prompts(prompts)
    sizes = np.array([prompts, *completions], dtype=np.int64).T  # [B, 1 + K]
    starts = (sizes.cumsum() - sizes.ravel()).reshape(sizes.shape)
    first = _first_places(len(sizes), np.array(widths, dtype=np.int64))
    within = _ranges(sizes.ravel())
    is_completion = np.arange(sizes.shape[1]) > 0
    before = np.where(is_completion, sizes[:, :1], 0)
    # the last prompt token predicts a completion's first token; each other token, the one behind it
    of_completion = sizes[:, 1:].T.ravel()  # completion 1 of all prompts, then completion 2
    begins = np.repeat(starts[:, 1:].T.ravel(), of_completion)
    offsets = _ranges(of_completion)
    prompt_ends = np.tile(starts[:, 0] + sizes[:, 0] - 1, len(completions))
    predicting = np.where(offsets == 0, np.repeat(prompt_ends, of_completion), begins + offsets - 1)
    rows = np.tile(np.arange(len(sizes)), len(completions)) * np.repeat(widths[1:], len(sizes))
    return SharedRows(
        source=torch.from_numpy(np.repeat(first.ravel(), sizes.ravel()) + within),
        positions=torch.from_numpy(np.repeat(before.ravel(), sizes.ravel()) + within)[None],
        columns=torch.from_numpy(begins + offsets),
        predicting=torch.from_numpy(predicting),
        slots=torch.from_numpy(np.repeat(rows, of_completion) + offsets),
        counts=tuple(sum(of_one) for of_one in completions),
        layout=_layout(sizes, starts),
    )


def _first_places(rows: int, widths: np.ndarray) -> np.ndarray:
    """[B, 1 + K] where each prompt and completion begins in the flattened tensors, which lie behind each other."""
    tensors = rows * (widths.cumsum() - widths)
    return tensors + np.arange(rows)[:, None] * widths


def _ranges(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... up to each size, behind each other."""
    return np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)


def _layout(sizes: np.ndarray, starts: np.ndarray) -> Layout:
    spans: list[Span] = []
    keys: list[np.ndarray] = []
    for row, begins in zip(sizes.tolist(), starts.tolist(), strict=True):
        of_prompt = np.arange(begins[0], begins[0] + row[0])
        prompt = len(spans)
        spans.append(Span(row[0], None, 0))
        keys.append(of_prompt)
        for size, begin in zip(row[1:], begins[1:], strict=True):
            if size:
                spans.append(Span(size, prompt, row[0]))
                keys += [of_prompt, np.arange(begin, begin + size)]
    columns = np.concatenate(keys)
    return Layout(
        tuple(spans),
        torch.from_numpy(columns),
        torch.from_numpy(_uses(columns, int(sizes.sum()))),
        _ends([span.size for span in spans]),
        _ends([span.prompt_size + span.size for span in spans]),
    )


def _uses(columns: np.ndarray, count: int) -> np.ndarray:
    """[T, U] the places of each of `count` columns in `columns`, filled up with its length."""
    often = np.bincount(columns, minlength=count)
    uses = np.full((count, often.max()), len(columns))
    uses[np.repeat(np.arange(count), often), _ranges(often)] = columns.argsort(kind="stable")
    return uses


def _ends(sizes: Sizes) -> Tensor:
    return torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32)
