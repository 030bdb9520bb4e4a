"""The defaults of a run: epochs, callbacks and loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_align import run_folder
from lit_align.console import progress_style
from lit_align.export import SaveModel
from lit_align.html_report import ReportCallback
from lit_align.progress import AlignmentProgressBar, PlainProgress
from lit_align.report.summary import RunSummary
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.lr_schedulers import MANY_EPOCHS
from lit_align.training.rank_watch import RankWatch
from lit_align.watch import RunWatch


def epochs_by_default(
    callbacks: Sequence[Callback], max_steps: int, max_time: object | None, min_epochs: int | None
) -> int:
    """The default number of passes over the training pairs: one, or practically no limit if another limit is set.

    Args:
        callbacks: the run's callbacks.
        max_steps: limit in optimizer steps; -1 for none.
        max_time: limit in time; None for none.
        min_epochs: the least number of passes; None for none.
    """
    timed = max_time is not None or any(isinstance(callback, Timer) for callback in callbacks)
    return MANY_EPOCHS if timed or max_steps != -1 else max(1, min_epochs or 1)


def all_callbacks(callbacks: Sequence[Callback], checkpointing: bool, bar: bool, root: Path) -> list[Callback]:
    """The callbacks of a run, followed by the default ones that it neither has nor switches off.

    Args:
        callbacks: the run's own.
        checkpointing: whether checkpoints are kept; without a folder of their own they go to the run folder's.
        bar: whether progress is shown.
        root: the run folder.
    """
    style = progress_style()
    defaults: list[tuple[type[Callback], Callable[[], Callback], bool]] = [
        (ProgressBar, AlignmentProgressBar if style == "bar" else PlainProgress, bar and style != "off"),
        (SaveModel, SaveModel, checkpointing),
        (RunWatch, RunWatch, True),
        (RankWatch, RankWatch, True),
        (RunSummary, RunSummary, True),
        (ReportCallback, ReportCallback, True),
        (ModelCheckpoint, AlignmentCheckpoint, checkpointing),
    ]
    complete = list(callbacks)
    for kind, make, enabled in defaults:
        if enabled and not any(isinstance(callback, kind) for callback in callbacks):
            complete.append(make())
    for callback in complete:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str((root / run_folder.CHECKPOINTS).absolute())
    return complete


def shows_progress(callbacks: Sequence[Callback], barebones: bool) -> bool:
    """Whether a run shows its progress where nobody says so; if not, Lightning adds no bar of its own either."""
    has_own = any(isinstance(callback, ProgressBar) for callback in callbacks)
    return not barebones and (has_own or progress_style() != "off")


def all_loggers(loggers: Logger | Iterable[Logger] | bool | None, barebones: bool, root: str) -> list[Logger] | bool:
    """The loggers of a run, and a CSV logger in the run folder beside them if there is none: the report reads it.

    The default loggers number their versions, so that a resumed run keeps the rows of the interrupted one.

    Args:
        loggers: the run's own; None and True take the default ones, False none.
        barebones: None takes none then.
        root: the run folder.
    """
    if loggers is False or (loggers is None and barebones):
        return False
    csv = CSVLogger(root, name=run_folder.CSV_LOGS)
    if loggers is None or loggers is True:
        return [csv, TensorBoardLogger(root, name=run_folder.TENSORBOARD_LOGS, default_hp_metric=False)]
    own = [loggers] if isinstance(loggers, Logger) else list(loggers)
    return own if any(isinstance(logger, CSVLogger) for logger in own) else [*own, csv]
