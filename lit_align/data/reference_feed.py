"""When reference log-probs are looked up, and how far ahead they are computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_align.batch import TokenizedPair, collate
from lit_align.console import note
from lit_align.data.scheduler import OffPolicySource
from lit_align.data.trainer_view import TrainerView
from lit_align.reference.logps import ReferenceLogps, Values, open_reference


@dataclass(eq=False)
class ReferenceFeed:
    """Gives pairs their reference log-probs, for as long as the stored ones hold.

    Without on-policy rounds all that the run can show is computed before its first batch, and the reference's memory
    given back. With them the source may change at any step, so static pairs are computed as many at a time as a
    round has prompts.

    Args:
        run: the Trainer as it is; its module has the reference.
        cache: the folder of the stores; None keeps nothing.
        source: says which static pairs come next.
        train_pairs: all static pairs.
        val_pairs: all held-out pairs.
        batch_size: pairs a micro-batch and device.
        val_batch_size: the same for the held-out pairs and for the reference.
        pad_id: what fills up a row.
        ahead: static pairs to compute at a time; None is all.
    """

    run: TrainerView
    cache: str | None
    source: OffPolicySource
    train_pairs: Sequence[TokenizedPair]
    val_pairs: Sequence[TokenizedPair]
    batch_size: int
    val_batch_size: int
    pad_id: int
    ahead: int | None

    def __post_init__(self) -> None:
        self._opened: tuple[Any, Any] | None = None
        self._logps: ReferenceLogps | None = None
        self._started = False
        self._held_out_filled = 0

    def logps_of(self, pair: TokenizedPair) -> Values | None:
        """The log-probs of the pair's chosen and rejected tokens; None if the reference must compute them."""
        logps = self._open()
        return None if logps is None else logps.of(pair)

    def before_static(self, count: int) -> None:
        """Called before the next `count` static pairs of all ranks, on each."""
        logps = self._start()
        if logps is not None and logps.missing(self.source.upcoming(count)):
            ahead = self._slots_left()
            if self.ahead is not None:
                ahead = min(ahead, self.ahead)
            self._fill(logps, self.source.upcoming(max(count, ahead)))

    def before_held_out(self) -> None:
        """Called before each batch of held-out pairs."""
        logps = self._start()
        if logps is not None and len(shown := self._held_out_shown()) > self._held_out_filled:
            self._held_out_filled = len(shown)
            self._fill(logps, shown)

    def add_to_round(self, pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
        """On-policy pairs with the log-probs of the reference as it is now."""
        logps = self._open()
        return list(pairs) if logps is None else logps.for_round(pairs)

    def fill_all(self) -> dict[str, Any]:
        """Computes and keeps the log-probs of all static pairs that lack them, held-out ones included.

        Returns:
            `pairs`, `found`, `computed`, `seconds` and `folder`; nothing if the loss has no reference, or its
            log-probs are not kept.
        """
        logps = self._open()
        if logps is None:
            return {}
        pairs = [*self.train_pairs, *self.val_pairs]
        self._tell_found(logps, pairs)
        self._started = True
        missing = len(logps.missing(pairs))
        began = time.perf_counter()
        self._fill(logps, pairs)
        seconds = time.perf_counter() - began
        if missing and self.run.rank == 0:
            note(f"Reference log-probs: computed {missing} pairs in {seconds:.0f} s ({missing / seconds:.1f} pairs/s)")
        return {
            "pairs": len(pairs),
            "found": len(pairs) - missing,
            "computed": missing,
            "seconds": seconds,
            "folder": str(logps.store.folder),
        }

    def _open(self) -> ReferenceLogps | None:
        """The log-probs for the Trainer's module, with what the store has of them."""
        trainer = self.run.trainer
        module = self.run.module
        if self.cache is None or getattr(module, "reference", None) is None:
            return None
        if self._opened is None or self._opened[0] is not trainer or self._opened[1] is not module:
            self._opened = (trainer, module)
            self._started = False
            self._held_out_filled = 0
            self._logps = open_reference(
                trainer,
                self.cache,
                lambda pairs: collate(pairs, self.pad_id),
                self.val_batch_size,
                self.run.bar,
            )
            if self._logps is not None:
                self._logps.find([*self.train_pairs, *self.val_pairs])
        return self._logps

    def _start(self) -> ReferenceLogps | None:
        """At the run's first batch of static pairs: says how many were found and fills what is missing."""
        logps = self._open()
        if logps is None or self._started:
            return logps
        self._started = True
        held_out = self._held_out_shown()
        shown = [*(self.source.upcoming(self._slots_left()) if self.run.is_fitting else ()), *held_out]
        self._tell_found(logps, shown)
        if self.ahead is None:
            self._held_out_filled = len(held_out)
            self._fill(logps, shown)
        return logps

    def _fill(self, logps: ReferenceLogps, pairs: Sequence[TokenizedPair]) -> None:
        logps.fill(pairs)
        if self.ahead is None:  # else the next round needs it again
            logps.module.reference.release()

    def _tell_found(self, logps: ReferenceLogps, pairs: Sequence[TokenizedPair]) -> None:
        missing = len(logps.missing(pairs))
        refreshed = bool(logps.module.reference.refreshes)
        if pairs and not refreshed and self.run.rank == 0:
            stored = f"all {len(pairs)}" if not missing else f"{len(pairs) - missing} of {len(pairs)}"
            to_compute = f", {missing} to compute" if missing else ""
            note(f"Reference log-probs: {stored} static pairs found in {logps.store.folder}{to_compute}")

    def _slots_left(self) -> int:
        """Static pairs that all ranks can still show before the fit ends, at the most."""
        slots = self.run.micro_batches_left() * self.batch_size * self.run.world
        return int(min(slots, len(self.train_pairs)))

    def _held_out_shown(self) -> Sequence[TokenizedPair]:
        """The held-out pairs that the Trainer's limits let through."""
        size = self.val_batch_size * self.run.world
        return self.val_pairs[: self.run.limit_held_out(-(-len(self.val_pairs) // size)) * size]
