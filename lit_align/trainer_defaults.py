"""What a run has unless its configuration says otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_align import run_folder
from lit_align.progress import AlignmentProgressBar
from lit_align.report.summary import RunSummary
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.lr_schedulers import MANY_EPOCHS


def check_accumulation(batches: int) -> None:
    """Refuses to take an optimizer step after no micro-batch.

    Raises:
        ValueError: the number is below 1.
    """
    if batches < 1:
        raise ValueError(f"expected accumulate_grad_batches to be at least 1 micro-batch a step, got {batches}")


def epochs_by_default(
    callbacks: Sequence[Callback], max_steps: int, max_time: object | None, min_epochs: int | None
) -> int:
    """Passes over the training pairs where no number is given: one, or none that count where a limit is given.

    Args:
        callbacks: of the run.
        max_steps: optimizer steps, -1 for no limit.
        max_time: how long to train; None for no limit.
        min_epochs: the least number of passes; None for none.
    """
    timed = max_time is not None or any(isinstance(callback, Timer) for callback in callbacks)
    return MANY_EPOCHS if timed or max_steps != -1 else max(1, min_epochs or 1)


def own_callbacks(given: Sequence[Callback], checkpointing: bool, bar: bool) -> list[Callback]:
    """A checkpoint, a progress bar and a summary, unless one of that kind is there or switched off."""
    own: list[Callback] = []
    if bar and not any(isinstance(callback, ProgressBar) for callback in given):
        own.append(AlignmentProgressBar())
    if not any(isinstance(callback, RunSummary) for callback in given):
        own.append(RunSummary())
    if checkpointing and not any(isinstance(callback, ModelCheckpoint) for callback in given):
        own.append(AlignmentCheckpoint())
    return own


def default_loggers(root: str) -> list[Logger]:
    """Both number their versions, so that a resumed run loses no row of the interrupted one."""
    return [
        CSVLogger(root, name=run_folder.CSV_LOGS),
        TensorBoardLogger(root, name=run_folder.TENSORBOARD_LOGS, default_hp_metric=False),
    ]
