"""The loaders that Lightning iterates over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lit_align.batch import PairBatch, TokenizedPair


class _Feeds(Protocol):
    @property
    def micro_batches_per_epoch(self) -> int: ...

    def next_batch(self) -> PairBatch: ...


class TrainFeed:
    """The train loader: sized and lazy, it asks the data module for each batch.

    Iterating has no side effects and never ends (Lightning stops after `len` batches): an epoch is a label,
    all state is the data module's. So a swap of sources acts on the very next micro-batch, and Lightning,
    which sees a loader with state, does not skip batches on resume.
    """

    def __init__(self, data: _Feeds) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.micro_batches_per_epoch

    def __iter__(self) -> Iterator[PairBatch]:
        return self

    def __next__(self) -> PairBatch:
        return self._data.next_batch()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load: the data module's state holds everything."""


def held_out_loader(
    pairs: Sequence[TokenizedPair],
    batch_size: int,
    rank: int,
    world: int,
    collate_pairs: Callable[[Sequence[TokenizedPair]], PairBatch],
) -> DataLoader[PairBatch]:
    """All pairs in their order, rank r's from the r-th on.

    Ranks must take as many steps, so that every rank gets as many: the last ones may get a pair that does not count.
    """
    filling = -len(pairs) % world
    items = [(pair, True) for pair in pairs] + [(pairs[0], False)] * filling
    sampler = DistributedSampler(items, world, rank, shuffle=False) if world > 1 else None  # type: ignore[var-annotated,arg-type]

    def collate_items(batch_items: Sequence[tuple[TokenizedPair, bool]]) -> PairBatch:
        batch = collate_pairs([pair for pair, _ in batch_items])
        batch.counted = torch.tensor([counted for _, counted in batch_items])
        return batch

    return DataLoader(items, batch_size=batch_size, sampler=sampler, collate_fn=collate_items)  # type: ignore[arg-type]
