"""A Lightning logger for Trackio, which has a dashboard on this machine or in a Space of the hub."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class TrackioLogger(Logger):
    """Logs to Trackio. `trackio show` opens the dashboard.

    Args:
        project: the project, which is the dashboard's page.
        name: of the run; a run of that name is gone on with. None lets Trackio choose.
        space_id: a Space of the hub, such as `user/board`; None logs on this machine only.
        options: further arguments of `trackio.init`.

    Raises:
        ModuleNotFoundError: Trackio is not installed.
    """

    def __init__(
        self, project: str = "lit-align", name: str | None = None, space_id: str | None = None, **options: Any
    ) -> None:
        super().__init__()
        try:
            import trackio
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "TrackioLogger needs the package trackio: pip install 'lit-align[trackio]'"
            ) from error
        self._trackio = trackio
        self._project = project
        self._name = name
        self._options = {"space_id": space_id, "embed": False, **options}
        self._settings: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The run's name; None before it has one."""
        return self._name if self._run is None else self._run.name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run, which begins when it is first asked for."""
        if self._run is None:
            resume = "never" if self._name is None else "allow"
            self._run = self._trackio.init(
                self._project, self._name, config=self._settings, resume=resume, **self._options
            )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Keeps the settings for the run's begin."""
        self._settings |= vars(params) if isinstance(params, Namespace) else params

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_table(self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int) -> None:
        """Logs a table of cells, row by row."""
        table = self._trackio.Table(columns=list(columns), data=list(data), allow_mixed_types=True)
        self.experiment.log({key: table}, step=step)

    @rank_zero_only
    def log_histogram(self, key: str, values: Sequence[float], step: int) -> None:
        """Logs the distribution of some values."""
        self.experiment.log({key: self._trackio.Histogram(values)}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run, and waits until all of it is written."""
        if self._run is not None:
            self._run.finish()
            self._run = None
