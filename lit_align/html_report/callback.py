"""The callback that writes the report of a run while it runs and at its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_align import run_folder
from lit_align.boundary.callback import BoundaryCallback
from lit_align.clock import timed
from lit_align.console import note
from lit_align.run_parts import find_callback, is_trial

When = Literal["decisions", "end", "never"]


class ReportCallback(Callback):
    """Writes `report.html` into the run folder: at the start, after each decision and validation, and at the end.

    A report that cannot be written never ends a run; a line says so once. Between the first page and the last, writing
    takes at most a fiftieth of the run's time: where decisions follow each other faster, some do not refresh it.

    Args:
        when: "decisions" as above, "end" only at the end, "never" not at all.

    Attributes:
        most_of_time: the share of the run's time that it may take before the end.
    """

    most_of_time = 0.02

    def __init__(self, when: When = "decisions") -> None:
        if when not in ("decisions", "end", "never"):
            raise ValueError(f'expected when to be "decisions", "end" or "never", got {when!r}')
        self.when = when
        self._decisions = 0
        self._failed = False
        self._took = 0.0
        self._written_at: float | None = None

    @property
    def state_key(self) -> str:
        return "ReportCallback"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the first page, for those who want to watch."""
        self._failed = False
        self._written_at = None
        self._decisions = _count_decisions(trainer)
        self._refresh(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        decisions = _count_decisions(trainer)
        if decisions > self._decisions:
            self._decisions = decisions
            self._refresh(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._refresh(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._written_at is not None or self.when == "end":
            self._write(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After the summary, which it shows."""
        if stage == "fit" and self.when != "never":
            self._write(trainer)

    def _refresh(self, trainer: Trainer) -> None:
        if self.when != "decisions":
            return
        since = time.perf_counter() - (self._written_at or 0.0)
        if self._written_at is None or since * self.most_of_time >= self._took:
            self._write(trainer)

    @timed("report")
    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or is_trial(trainer):
            return
        folder = Path(trainer.default_root_dir)
        began = time.perf_counter()
        try:
            from lit_align.html_report.page import write_report  # it loads the plotting library

            for logger in trainer.loggers:
                logger.save()
            write_report([folder], folder / run_folder.REPORT)
        except Exception as error:
            if not self._failed:
                note(f"The report was not written ({type(error).__name__}: {error}); the run goes on without it.")
            self._failed = True
        self._written_at = time.perf_counter()
        self._took = self._written_at - began


def _count_decisions(trainer: Trainer) -> int:
    boundary = find_callback(trainer, BoundaryCallback)
    return 0 if boundary is None else len(boundary.history)
