"""A pair as token ids, ready for batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class PairReference:
    """What the reference gave to a pair when it was sampled.

    Args:
        chosen: [C] float32 log-probs of the chosen completion's tokens, in nats.
        rejected: [R] float32, of the rejected one's.
        version: how often the reference had been refreshed by then; a later one gives other values.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedPair:
    """A pair as int32 arrays of token ids.

    Args:
        prompt: [P] ids, chat template and generation prompt included.
        chosen: [C] ids, end-of-turn token included where the completion ended.
        rejected: [R] ids, likewise.
        margin: chosen minus rejected score; NaN where unknown.
        on_policy: whether the pair was sampled from the policy.
        target: ids of SLiC-HF's regulariser target, where the row has one.
        reference: of an on-policy pair, its reference log-probs, where the loss has a reference.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    margin: float
    on_policy: bool
    target: np.ndarray | None = None
    reference: PairReference | None = None
