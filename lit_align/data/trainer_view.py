"""A data module's view of its Trainer, which also answers if there is no Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

from lit_align.console import Activity, note, show_activity
from lit_align.data.resume import saved_start
from lit_align.policy.load import load_position_limit, load_vocabulary_size
from lit_align.progress import PlainProgress
from lit_align.ranks import gather

LIMITS = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}
"""The setting of the Trainer that limits the held-out pairs of each command."""


class TrainerView:
    """The Trainer as it is at the moment.

    Args:
        get_trainer: gives it; None without one.
    """

    def __init__(self, get_trainer: Callable[[], Any]) -> None:
        self._get_trainer = get_trainer

    @property
    def trainer(self) -> Any:
        return self._get_trainer()

    @property
    def module(self) -> Any:
        """The module that is trained; None without a Trainer."""
        return getattr(self.trainer, "lightning_module", None)

    @property
    def rank(self) -> int:
        return int(getattr(self.trainer, "global_rank", 0))

    @property
    def world(self) -> int:
        return int(getattr(self.trainer, "world_size", 1))

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return int(getattr(self.trainer, "global_step", 0))

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimizer step, at the moment."""
        return int(getattr(self.trainer, "accumulate_grad_batches", 1) or 1)

    def takes_held_out(self, stage: str) -> bool:
        """Whether a stage is for the held-out pairs alone; `measure` and the like only begin as a validation."""
        return stage in LIMITS and not getattr(self.trainer, "works_in_place", False)

    @property
    def overfits(self) -> bool:
        """Whether the Trainer's `overfit_batches` is on."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    @property
    def is_fitting(self) -> bool:
        """Whether a fit is under way, not only an evaluation."""
        return bool(self.trainer.state.fn == "fit")

    def micro_batches_left(self) -> float:
        """Micro-batches before the fit ends, at the most."""
        trainer = self.trainer
        micro_batches = math.inf
        if trainer.max_steps >= 0:
            micro_batches = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            epochs = trainer.max_epochs - trainer.current_epoch
            micro_batches = min(micro_batches, epochs * trainer.num_training_batches)
        return micro_batches

    def limit_held_out(self, batches: int) -> int:
        """Of so many batches of held-out pairs, those that the Trainer's limit for its command lets through."""
        limit = getattr(self.trainer, LIMITS.get(self.trainer.state.fn.value, LIMITS["validate"]))
        return limit if isinstance(limit, int) else math.ceil(limit * batches)

    def limit_overfit(self, batches: int) -> int | None:
        """Of so many micro-batches of an epoch, the first that the Trainer's `overfit_batches` takes; None: all."""
        limit = getattr(self.trainer, "overfit_batches", 0)
        if not limit:
            return None
        return max(1, int(limit * batches)) if isinstance(limit, float) else min(limit, batches)

    @property
    def needs_target(self) -> bool:
        """Whether the module's loss asks for each row's own target."""
        return bool(getattr(getattr(self.module, "loss", None), "needs_target", False))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that the policy's generation config ends an answer at."""
        return tuple(getattr(self.module, "stop_ids", ()))

    @property
    def vocabulary_size(self) -> int | None:
        """How many tokens the model has a row for in its embedding; None if that is not known."""
        spec = getattr(self.module, "spec", None)
        return None if spec is None else load_vocabulary_size(spec)

    @property
    def position_limit(self) -> tuple[int | None, bool]:
        """The tokens of a row that the model was made for, None where that is not known, and whether more must fail."""
        spec = getattr(self.module, "spec", None)
        return (None, False) if spec is None else load_position_limit(spec)

    def find_start(self, data_key: str, writes_date: bool) -> datetime:
        """When the run began: as its checkpoint has it, of a fresh run now; the same on every rank.

        Args:
            data_key: the data module's in a checkpoint.
            writes_date: whether the chat template writes it, which is said.
        """
        checkpoint = getattr(self.trainer, "ckpt_path", None)
        start = gather(saved_start(checkpoint, data_key) or datetime.now().replace(microsecond=0))[0]
        if writes_date and self.rank == 0:
            note(
                f"The chat template writes the date: {start:%Y-%m-%d} all through this run. Another run finds its "
                f"stored reference log-probs with the data's `date: {start}`"
            )
        return start

    @property
    def takes_pairs_by_themselves(self) -> bool:
        """Whether the module's loss says that a pair's loss does not depend on the others of its micro-batch."""
        return bool(getattr(getattr(self.module, "loss", None), "per_pair", False))

    def count_sorted_together(self) -> int:
        """Micro-batches, from the next one on, whose pairs may change places: those left of the optimizer step.

        An epoch's end cuts a step short. 1 if the module's loss does not say that it takes each pair by itself.
        """
        loop = getattr(self.trainer, "fit_loop", None)
        if loop is None or not self.takes_pairs_by_themselves:
            return 1
        done = loop.epoch_loop.batch_progress.current.ready
        of_step = self.accumulation - done % self.accumulation
        of_epoch = self.trainer.num_training_batches - done
        return max(1, int(min(of_step, of_epoch)))

    @property
    def shows_bars(self) -> bool:
        """On rank 0 only, and not if the Trainer's own bar is off."""
        if self.trainer is None:
            return True
        return self.rank == 0 and getattr(self.trainer, "progress_bar_callback", None) is not None

    def bar(self, total: int | None, desc: str, unit: str) -> Activity:
        """How far something is, in the manner of the Trainer's own progress."""
        in_lines = isinstance(getattr(self.trainer, "progress_bar_callback", None), PlainProgress)
        return show_activity(total, desc, unit, self.shows_bars, "plain" if in_lines else None)
