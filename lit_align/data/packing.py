"""Pairs as tensors for a checkpoint, and the fingerprint of the data that they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lit_align.batch import PairReference, TokenizedPair
from lit_align.records import CandidateSet


def fingerprint(pairs: Sequence[TokenizedPair], sets: Sequence[CandidateSet]) -> str:
    """The number of pairs and a hash of their tokens and of the training prompts."""
    digest = hashlib.blake2b(digest_size=8)
    for pair in pairs:
        for ids in (pair.prompt, pair.chosen, pair.rejected):
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    for candidates in sets:
        digest.update(repr(candidates.prompt).encode("utf-8", "backslashreplace"))
    return f"{len(pairs)} pairs (hash {digest.hexdigest()})"


def pack(pairs: Sequence[TokenizedPair]) -> dict[str, Any]:
    """Pairs as a few tensors, which a checkpoint loaded with `weights_only=True` may hold."""
    tokens: list[np.ndarray] = []
    lengths: list[list[int]] = []
    logps: list[np.ndarray] = []
    for pair in pairs:
        sides = (pair.prompt, pair.chosen, pair.rejected, pair.target)
        tokens += [ids for ids in sides if ids is not None]
        lengths.append([-1 if ids is None else len(ids) for ids in sides])
        if pair.reference is not None:
            logps += [pair.reference.chosen, pair.reference.rejected]
    return {
        "tokens": torch.from_numpy(np.concatenate(tokens)) if tokens else torch.empty(0, dtype=torch.int32),
        "lengths": torch.tensor(lengths, dtype=torch.int64).reshape(-1, 4),
        "margins": torch.tensor([p.margin for p in pairs], dtype=torch.float64),
        "on_policy": torch.tensor([p.on_policy for p in pairs], dtype=torch.bool),
        "reference_logps": torch.from_numpy(np.concatenate(logps)) if logps else torch.empty(0),
        "reference_versions": torch.tensor([-1 if p.reference is None else p.reference.version for p in pairs]),
    }


def unpack(packed: dict[str, Any]) -> list[TokenizedPair]:
    """Pairs from what :func:`pack` made of them."""
    tokens = _Parts(packed["tokens"].numpy())
    logps = _Parts(packed["reference_logps"].numpy())
    columns = [packed[key].tolist() for key in ("lengths", "margins", "on_policy", "reference_versions")]
    pairs = []
    for (prompt, chosen, rejected, target), margin, on_policy, version in zip(*columns, strict=True):
        reference = None
        if version >= 0:
            reference = PairReference(logps.next(chosen), logps.next(rejected), version)
        pairs.append(
            TokenizedPair(
                prompt=tokens.next(prompt),
                chosen=tokens.next(chosen),
                rejected=tokens.next(rejected),
                margin=margin,
                on_policy=on_policy,
                target=None if target < 0 else tokens.next(target),
                reference=reference,
            )
        )
    return pairs


class _Parts:
    """Takes arrays back out of their concatenation."""

    def __init__(self, concatenated: np.ndarray) -> None:
        self.concatenated = concatenated
        self.start = 0

    def next(self, length: int) -> np.ndarray:
        self.start += length
        return self.concatenated[self.start - length : self.start].copy()
