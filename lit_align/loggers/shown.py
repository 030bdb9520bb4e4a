"""Tables, histograms and charts for the loggers that can show them; any other is passed over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lit_align.loggers.trackio import TrackioLogger
from lit_align.markdown import markdown_table

Interval = tuple[float, float, float]
"""A value with the lower and the upper end of its interval."""


def log_table(
    loggers: Iterable[Logger], key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Gives a table to the loggers: as text to TensorBoard, as an artifact to MLflow, as a table to W&B and others.

    Args:
        loggers: of the run.
        key: the table's name, such as `boundary/samples`.
        columns: names of the columns.
        rows: the cells, row by row: text, numbers or None.
        step: the optimizer step that it belongs to.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            cells = [_cells(row) for row in (columns, *rows)]
            logger.experiment.add_text(key, markdown_table(cells), step)
        elif isinstance(logger, MLFlowLogger):
            table = {column: [row[place] for row in rows] for place, column in enumerate(columns)}
            logger.experiment.log_table(logger.run_id, data=table, artifact_file=f"{key}/step_{step}.json")
        elif hasattr(logger, "log_table"):
            logger.log_table(key=key, columns=list(columns), data=[list(row) for row in rows], step=step)


def log_histogram(loggers: Iterable[Logger], key: str, values: Iterable[float | None], step: int) -> None:
    """Gives a histogram to TensorBoard, W&B and Trackio.

    Args:
        loggers: of the run.
        key: the histogram's name.
        values: None, NaN and infinities are left out; without any other there is no histogram.
        step: the optimizer step that it belongs to.
    """
    finite = np.array([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)
    if not finite.size:
        return
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(key, finite, step)
        elif isinstance(logger, WandbLogger):
            import wandb

            logger.log_metrics({key: wandb.Histogram(finite.tolist())}, step)
        elif isinstance(logger, TrackioLogger):
            logger.log_histogram(key, finite.tolist(), step)


def log_score_chart(
    loggers: Iterable[Logger], key: str, title: str, steps: Sequence[int], scores: Sequence[Interval], middle: float
) -> None:
    """Gives W&B and TensorBoard one chart of a score with its interval over the steps.

    To MLflow and Trackio the score is a metric like others, which they chart by themselves.

    Args:
        loggers: of the run.
        key: the name under which the score is logged as a metric; its ends are `low` and `high` beside it.
        title: of the chart.
        steps: optimizer steps that were measured, at least one, the last one now.
        scores: a value with its interval for each of the steps.
        middle: where a line is drawn across.
    """
    group, _, _ = key.rpartition("/")
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):  # drawn from the metrics, on the page "custom scalars"
            tags = [key, f"{group}/low", f"{group}/high"]
            logger.experiment.add_custom_scalars({group: {title: ["Margin", tags]}})
        elif isinstance(logger, WandbLogger):
            import wandb

            curves = {"score": 0, "low": 1, "high": 2}
            lines = [[score[place] for score in scores] for place in curves.values()] + [[middle] * len(steps)]
            names = [*curves, f"{middle:g}"]
            chart = wandb.plot.line_series(list(steps), lines, keys=names, title=title, xname="step")
            logger.log_metrics({f"{key}_chart": chart}, steps[-1])


def _cells(row: Sequence[Any]) -> list[str]:
    return [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row]
