"""The reference's log-probs of pairs: found in a store, else computed once and stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_align.batch import PairBatch, PairReference, TokenizedPair
from lit_align.by_length import batches_by_length
from lit_align.clock import timed
from lit_align.console import Activity
from lit_align.policy.cache import cache_dir
from lit_align.policy.identity import model_identity
from lit_align.policy.logps import TokenLogps
from lit_align.policy.modes import in_eval_mode
from lit_align.ranks import gather, shard
from lit_align.reference.store import ReferenceStore, completion_key

Pairs = Sequence[TokenizedPair]
Values = tuple[np.ndarray, np.ndarray]
_File = tuple[str | None, dict[bytes, np.ndarray]]  # its name, if it could be written, and what it holds
Collate = Callable[[Pairs], PairBatch]
Progress = Callable[[int, str, str], Activity]

AUTO = "auto"
ARITHMETIC = 3
"""Counts the ways in which half precision was computed. Values of an earlier one are not the policy's at its start."""
WRITE_SECONDS = 20.0
"""How often a pass writes down what it has: a kill costs no more."""
_SHARED_AT_ONCE = 4096  # pairs a rank computes between two exchanges, so that these stay small


class ReferenceLogps:
    """The reference's log-probs of the static pairs and of on-policy rounds.

    Static pairs are known by their token ids and hold for the reference as it starts; a refreshed reference
    has none. All ranks call :meth:`fill` with the same pairs.

    Args:
        trainer: runs the module whose reference it is.
        store: keeps the static pairs' values.
        collate: makes a batch of pairs.
        batch_size: pairs a forward pass.
        progress: total, description and unit -> a bar.
    """

    def __init__(
        self, trainer: Any, store: ReferenceStore, collate: Collate, batch_size: int, progress: Progress
    ) -> None:
        self.module: Any = trainer.lightning_module
        self.store = store
        self._precision = trainer.precision_plugin
        self._collate = collate
        self._batch_size = batch_size
        self._progress = progress
        self._known: dict[bytes, np.ndarray] = {}

    def of(self, pair: TokenizedPair) -> Values | None:
        """The values of the chosen and the rejected tokens, if they are known for the reference as it is."""
        version: int = self.module.reference.refreshes
        if pair.reference is not None:
            kept = pair.reference
            return (kept.chosen, kept.rejected) if kept.version == version else None
        if version > 0:
            return None
        chosen, rejected = (self._known.get(key) for key in _keys(pair))
        return None if chosen is None or rejected is None else (chosen, rejected)

    def missing(self, pairs: Pairs) -> list[TokenizedPair]:
        """Pairs that, computed, would make all of `pairs` known; none once the reference was refreshed."""
        if self.module.reference.refreshes:
            return []
        planned: set[bytes] = set()
        kept = []
        for pair in pairs:
            keys = [key for key in _keys(pair) if key not in self._known and key not in planned]
            if keys:
                planned.update(keys)
                kept.append(pair)
        return kept

    def find(self, pairs: Pairs) -> None:
        """Takes from the store what it has of `pairs`; under DDP what all ranks find, should their disks differ."""
        lengths: dict[bytes, int] = {}
        for pair in pairs:
            lengths.update(zip(_keys(pair), (len(pair.chosen), len(pair.rejected)), strict=True))
        stored = self.store.read(lengths)
        everywhere = set.intersection(*gather(set(stored)))
        self._known.update((key, stored[key]) for key in lengths if key in everywhere)

    @timed("reference")
    def fill(self, pairs: Pairs) -> None:
        """Computes what is missing of `pairs`, shared among the ranks, and stores it as it goes."""
        missing = sorted(self.missing(pairs), key=_length, reverse=True)  # the longest first: memory fails at once
        if not missing:
            return
        rank, world = shard()
        own = len(missing[rank::world])
        stride = _SHARED_AT_ONCE * world
        with self._ready_to_run(), self._progress(own, "reference log-probs", "pairs") as bar:
            for start in range(0, len(missing), stride):
                for part in gather(self._compute(missing[start : start + stride][rank::world], bar)):
                    self._take(part)

    @timed("reference")
    def for_round(self, pairs: Pairs) -> list[TokenizedPair]:
        """Sampled pairs with the values of the reference as it is now."""
        version: int = self.module.reference.refreshes
        done = list(pairs)
        with self._ready_to_run(), self._progress(len(pairs), "reference log-probs", "pairs") as bar:
            for batch in batches_by_length(list(map(_length, pairs)), self._batch_size):
                for index, (chosen, rejected) in zip(batch, self._run([pairs[i] for i in batch]), strict=True):
                    done[index] = replace(pairs[index], reference=PairReference(chosen, rejected, version))
                bar.update(len(batch))
        return done

    def _compute(self, pairs: Pairs, bar: Activity) -> list[_File]:
        """The values of this rank's pairs, in the files that they were written to, also if it is interrupted."""
        files: list[_File] = []
        pending: dict[bytes, np.ndarray] = {}
        written = time.monotonic()
        try:
            for start in range(0, len(pairs), self._batch_size):
                batch = pairs[start : start + self._batch_size]
                for pair, values in zip(batch, self._run(batch), strict=True):
                    pending.update(zip(_keys(pair), values, strict=True))
                bar.update(len(batch))
                if time.monotonic() - written >= WRITE_SECONDS:
                    files.append((self._write(pending), pending))
                    pending = {}
                    written = time.monotonic()
        finally:
            files.append((self._write(pending), pending))
        return files

    def _take(self, files: Sequence[_File]) -> None:
        """Takes what a rank computed; if this one does not see its files, it keeps a copy on its own disk."""
        for name, values in files:
            self._known |= values
            if name is not None and not (self.store.folder / name).exists():
                self._write(values)

    def _write(self, values: dict[bytes, np.ndarray]) -> str | None:
        try:
            return self.store.write(values)
        except OSError as error:
            rank_zero_warn(f"The reference log-probs could not be kept for later runs in {self.store.folder}: {error}")
            return None

    @contextmanager
    def _ready_to_run(self) -> Iterator[None]:
        module = self.module
        with module.reference_gathered(), in_eval_mode(module), self._precision.forward_context(), torch.no_grad():
            yield

    def _run(self, pairs: Pairs) -> list[Values]:
        """One forward pass of the reference."""
        batch = self._collate(pairs).to(self.module.device)
        chosen, rejected = (_rows(side) for side in self.module.run_reference(batch))
        return list(zip(chosen, rejected, strict=True))


def open_reference(
    trainer: Any, cache: str, collate: Collate, batch_size: int, progress: Progress
) -> ReferenceLogps | None:
    """The stored log-probs of the Trainer's module's reference. All ranks call it.

    Args:
        trainer: runs an alignment module.
        cache: the folder for the stores of all references; "auto" is `reference` in the cache folder.
        collate: see :class:`ReferenceLogps`.
        batch_size: pairs a forward pass.
        progress: total, description and unit -> a bar.

    Returns:
        None if the reference must run at each step: it is no fixed model, or cannot be told from others.
    """
    module = trainer.lightning_module
    # One rank reads the weights' files, not each; a reason travels as a string, so that no rank waits for another.
    identity = gather(_identity(module, str(trainer.precision)) if shard()[0] == 0 else "")[0]
    if isinstance(identity, str):
        _warn_unstored(identity)
        return None
    root = cache_dir() / "reference" if cache == AUTO else Path(cache).expanduser()
    return ReferenceLogps(trainer, ReferenceStore(root, identity), collate, batch_size, progress)


def _identity(module: Any, precision: str) -> dict[str, Any] | str:
    start = module.reference.initial_spec(module.spec)
    if start is None:
        return f"{type(module.reference).__name__} does not say which model it starts as (see `Reference.start`)"
    try:
        return {**model_identity(start, precision), "arithmetic": ARITHMETIC}
    except (OSError, ValueError) as error:
        return f"it cannot be told from other models: {error}"


def _warn_unstored(reason: str) -> None:
    rank_zero_warn(f"The reference runs at each step and its log-probs are not stored: {reason}.")


def _keys(pair: TokenizedPair) -> tuple[bytes, bytes]:
    return completion_key(pair.prompt, pair.chosen), completion_key(pair.prompt, pair.rejected)


def _length(pair: TokenizedPair) -> int:
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def _rows(side: TokenLogps) -> list[np.ndarray]:
    """Each row's values without padding, [C] float32."""
    values = side.logps.float().cpu().numpy()
    mask = side.mask.cpu().numpy()
    return [row[real] for row, real in zip(values, mask, strict=True)]
