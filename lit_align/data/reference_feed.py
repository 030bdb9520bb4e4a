"""When a data module's reference log-probs are looked up, and how far ahead they are computed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_align.batch import TokenizedPair
from lit_align.console import note
from lit_align.data.loader import collate
from lit_align.data.trainer_view import LIMITS
from lit_align.reference.logps import ReferenceLogps, Values, open_reference

if TYPE_CHECKING:
    from lit_align.data.datamodule import AlignmentDataModule


class ReferenceFeed:
    """Gives the batches of a data module their reference log-probs, for as long as the stored ones hold.

    Without a sampler all that the run can show is computed before its first batch, and the reference's memory
    given back. With one the source may change at any step, so static pairs are computed as many at a time as a
    round has prompts.

    Args:
        data: whose pairs they are; its Trainer's module has the reference.
    """

    def __init__(self, data: AlignmentDataModule) -> None:
        self._data = data
        self._opened: tuple[Any, Any] | None = None
        self._logps: ReferenceLogps | None = None
        self._started = False
        self._held_out_known = 0

    def of(self, pair: TokenizedPair) -> Values | None:
        """The log-probs of the pair's chosen and rejected tokens; None where the reference must compute them."""
        logps = self._open()
        return None if logps is None else logps.of(pair)

    def before_static(self, count: int) -> None:
        """Called before the next `count` static pairs of all ranks, on each."""
        logps = self._start()
        if logps is not None and logps.missing(self._data.upcoming(count)):
            ahead = self._slots_left()
            if self._data.sampler is not None:
                ahead = min(ahead, self._data.round_prompts)
            self._fill(logps, self._data.upcoming(max(count, ahead)))

    def before_held_out(self) -> None:
        """Called before each batch of held-out pairs."""
        logps = self._start()
        if logps is not None and len(shown := self._held_out_shown()) > self._held_out_known:
            self._held_out_known = len(shown)
            self._fill(logps, shown)

    def for_round(self, pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
        """On-policy pairs with the log-probs of the reference as it is now."""
        logps = self._open()
        return list(pairs) if logps is None else logps.for_round(pairs)

    def fill_all(self) -> dict[str, Any]:
        """See :meth:`AlignmentDataModule.fill_reference`."""
        logps = self._open()
        if logps is None:
            return {}
        pairs = [*self._data.train_pairs, *self._data.val_pairs]
        self._say(logps, pairs)
        self._started = True
        missing, began = len(logps.missing(pairs)), time.perf_counter()
        self._fill(logps, pairs)
        seconds = time.perf_counter() - began
        return {
            "pairs": len(pairs),
            "found": len(pairs) - missing,
            "computed": missing,
            "seconds": seconds,
            "folder": str(logps.store.folder),
        }

    def _open(self) -> ReferenceLogps | None:
        """The log-probs for the Trainer's module, with what the store has of them."""
        data, trainer = self._data, self._data.trainer
        module: Any = getattr(trainer, "lightning_module", None)
        if data.reference_cache is None or getattr(module, "reference", None) is None:
            return None
        if self._opened is None or self._opened[0] is not trainer or self._opened[1] is not module:
            self._opened, self._started, self._held_out_known = (trainer, module), False, 0
            self._logps = open_reference(
                trainer,
                data.reference_cache,
                lambda pairs: collate(pairs, data.encoder.pad_id),
                data.val_batch_size,
                data.run.bar,
            )
            if self._logps is not None:
                self._logps.find([*data.train_pairs, *data.val_pairs])
        return self._logps

    def _start(self) -> ReferenceLogps | None:
        """At the run's first batch of static pairs: says how many were found and fills what is missing."""
        logps = self._open()
        if logps is not None and not self._started:
            self._started = True
            fits = self._data.trainer.state.fn == "fit"  # type: ignore[union-attr]
            shown = [*(self._data.upcoming(self._slots_left()) if fits else ()), *self._held_out_shown()]
            self._say(logps, shown)
            if self._data.sampler is None:
                self._held_out_known = len(self._held_out_shown())
                self._fill(logps, shown)
        return logps

    def _fill(self, logps: ReferenceLogps, pairs: Sequence[TokenizedPair]) -> None:
        logps.fill(pairs)
        if self._data.sampler is None:  # else the next round needs it again
            logps.module.reference.release()

    def _say(self, logps: ReferenceLogps, pairs: Sequence[TokenizedPair]) -> None:
        missing = len(logps.missing(pairs))
        of_its_start = not logps.module.reference.refreshes
        if pairs and of_its_start and self._data.trainer.is_global_zero:  # type: ignore[union-attr]
            found = f"all {len(pairs)}" if not missing else f"{len(pairs) - missing} of {len(pairs)}"
            rest = f", {missing} to compute" if missing else ""
            note(f"Reference log-probs: {found} static pairs found in {logps.store.folder}{rest}")

    def _slots_left(self) -> int:
        """Static pairs that all ranks can still show before the fit ends, at the most."""
        trainer: Any = self._data.trainer
        micro_batches = math.inf
        if trainer.max_steps >= 0:
            micro_batches = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            epochs = trainer.max_epochs - trainer.current_epoch
            micro_batches = min(micro_batches, epochs * trainer.num_training_batches)
        slots = micro_batches * self._data.batch_size * trainer.world_size
        return int(min(slots, len(self._data.train_pairs)))

    def _held_out_shown(self) -> list[TokenizedPair]:
        """The held-out pairs that the Trainer's limits let through."""
        data, trainer = self._data, self._data.trainer
        limit = getattr(trainer, LIMITS.get(trainer.state.fn.value, LIMITS["validate"]))  # type: ignore[union-attr]
        size = data.val_batch_size * trainer.world_size  # type: ignore[union-attr]
        batches = limit if isinstance(limit, int) else math.ceil(limit * math.ceil(len(data.val_pairs) / size))
        return data.val_pairs[: batches * size]
