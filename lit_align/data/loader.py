"""What Lightning iterates over, and how pairs become a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lit_align.batch import Padded, PairBatch, TokenizedPair


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

    def collate_items(some: Sequence[tuple[TokenizedPair, bool]]) -> PairBatch:
        batch = collate_pairs([pair for pair, _ in some])
        batch.counted = torch.tensor([counted for _, counted in some])
        return batch

    return DataLoader(items, batch_size=batch_size, sampler=sampler, collate_fn=collate_items)  # type: ignore[arg-type]


def collate(
    pairs: Sequence[TokenizedPair],
    pad_id: int,
    reference: Sequence[tuple[np.ndarray, np.ndarray] | None] | None = None,
) -> PairBatch:
    """A batch of pairs. `target` is there if every pair has one, and so are the reference's log-probs.

    Args:
        pairs: at least one.
        pad_id: the id at padding.
        reference: the reference's log-probs of each pair's chosen and rejected tokens, where they are known.
    """
    targets = [pair.target for pair in pairs if pair.target is not None]
    chosen = Padded.from_sequences([pair.chosen for pair in pairs], pad_id)  # type: ignore[misc]
    rejected = Padded.from_sequences([pair.rejected for pair in pairs], pad_id)  # type: ignore[misc]
    known = [values for values in reference or () if values is not None]
    return PairBatch(
        prompt=Padded.from_sequences([pair.prompt for pair in pairs], pad_id),  # type: ignore[misc]
        chosen=chosen,
        rejected=rejected,
        on_policy=torch.tensor([pair.on_policy for pair in pairs]),
        margin=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
        target=Padded.from_sequences(targets, pad_id) if len(targets) == len(pairs) else None,  # type: ignore[arg-type]
        **(_reference_of(chosen, rejected, known) if len(known) == len(pairs) else {}),
    )


def _reference_of(
    chosen: Padded, rejected: Padded, values: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, torch.Tensor]:
    chosen_tokens, rejected_tokens = torch.zeros(chosen.mask.shape), torch.zeros(rejected.mask.shape)
    chosen_tokens[chosen.mask] = torch.from_numpy(np.concatenate([pair[0] for pair in values]))
    rejected_tokens[rejected.mask] = torch.from_numpy(np.concatenate([pair[1] for pair in values]))
    return {
        "reference_chosen_logps": chosen_tokens.sum(-1),
        "reference_rejected_logps": rejected_tokens.sum(-1),
        "reference_chosen_token_logps": chosen_tokens,
        "reference_rejected_token_logps": rejected_tokens,
    }
