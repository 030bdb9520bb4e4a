"""What each logger is given to show: numbers, tables, histograms and charts. All without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_align.boundary import BoundaryCallback
from lit_align.loggers import TrackioLogger, log_histogram, log_score_chart, log_table
from lit_align.trainer import AlignmentTrainer
from tests.helpers.boundary_fakes import FakeData, FakeModule

QUALITY = [0.1] * 4 + [0.9] * 5


@pytest.fixture
def environment() -> Iterator[None]:
    """Undoes what a logger writes into the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def fit(folder: Path, *loggers: Logger) -> BoundaryCallback:
    """A fit that measures at steps 0 and 4, where it crosses."""
    boundary = BoundaryCallback(every_n_steps=4, samples_to_keep=2)
    trainer = AlignmentTrainer(
        default_root_dir=folder, max_steps=6, accelerator="cpu", logger=list(loggers), enable_checkpointing=False,
        enable_progress_bar=False, callbacks=[boundary],
    )  # fmt: skip
    data = FakeData(QUALITY)
    data.run = SimpleNamespace(overfits=False)  # type: ignore[attr-defined]
    trainer.fit(FakeModule(), datamodule=data)
    return boundary


def test_tensorboard_shows_tables_histograms_and_the_score_with_its_interval(tmp_path: Path) -> None:
    boundary = fit(tmp_path, TensorBoardLogger(tmp_path, "board"))
    events = EventAccumulator(str(tmp_path / "board" / "version_0"), size_guidance={"tensors": 0}).Reload()
    assert [(event.step, event.value) for event in events.Scalars("boundary/score")] == [
        (decision.step, pytest.approx(decision.score)) for decision in boundary.history
    ]
    samples, decisions = (
        events.Tensors(f"boundary/{name}/text_summary")[-1].tensor_proto.string_val[0].decode()
        for name in ("samples", "decisions")
    )
    assert samples.startswith("| prompt | side | score | answer |") and samples.count("on_policy") == 2 * 2
    assert decisions.count("\n") == 1 + len(boundary.history) and "crossed 0.5" in decisions
    for name in ("vote_shares", "on_policy/scores", "off_policy/scores"):
        histogram = events.Histograms(f"boundary/{name}")[-1]
        sets = boundary.history[-1].prompts * {"vote_shares": 1, "on_policy/scores": 2, "off_policy/scores": 4}[name]
        assert (histogram.step, histogram.histogram_value.num) == (4, sets)
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"boundary score" in layout and b"boundary/low" in layout and b"boundary/high" in layout


def test_a_csv_stays_in_the_run_folder_beside_other_loggers(tmp_path: Path) -> None:
    fit(tmp_path, TensorBoardLogger(tmp_path, "board"))
    assert "boundary/score" in (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()[0]
    assert not (tmp_path / "tensorboard").exists()
    fit(tmp_path / "own", CSVLogger(tmp_path / "own", "rows"))
    assert not (tmp_path / "own/csv").exists() and (tmp_path / "own/rows/version_0/metrics.csv").exists()


@pytest.mark.usefixtures("environment")
def test_weights_and_biases_gets_tables_histograms_and_a_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    logged: list[dict[str, Any]] = []
    log = logger.experiment.log
    monkeypatch.setattr(logger.experiment, "log", lambda row, *args, **kwargs: (logged.append(row), log(row)))
    boundary = fit(tmp_path, logger)
    wandb.finish()
    assert [row["trainer/global_step"] for row in logged if "boundary/score" in row] == [0, 4]
    kinds = {key: type(value) for row in logged for key, value in row.items() if not isinstance(value, int | float)}
    assert kinds["boundary/samples"] is kinds["boundary/decisions"] is wandb.Table
    assert kinds["boundary/vote_shares"] is kinds["boundary/on_policy/scores"] is wandb.Histogram
    assert "boundary/score_chart" in kinds
    tables = [json.loads(path.read_text()) for path in tmp_path.glob("wandb/*/files/media/table/boundary/*.json")]
    history = [table["data"] for table in tables if table["columns"][0] == "step" and "reason" in table["columns"]]
    assert [row[0] for row in max(history, key=len)] == [decision.step for decision in boundary.history]


@pytest.mark.usefixtures("environment")
def test_mlflow_gets_tables_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = MLFlowLogger("test", tracking_uri=store, artifact_location=str(tmp_path / "artifacts"))
    boundary = fit(tmp_path, logger)
    client = mlflow.MlflowClient(store)
    history = client.get_metric_history(logger.run_id, "boundary/score")
    assert [(point.step, point.value) for point in history] == [
        (decision.step, pytest.approx(decision.score)) for decision in boundary.history
    ]
    stored = Path(client.download_artifacts(logger.run_id, "boundary", str(tmp_path)))
    decisions = json.loads((stored / "decisions/step_4.json").read_text())
    assert decisions["columns"][:2] == ["step", "stage"] and len(decisions["data"]) == 2
    assert len(json.loads((stored / "samples/step_4.json").read_text())["data"]) == 2 * 6


def test_trackio_gets_tables_histograms_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    boundary = fit(tmp_path, TrackioLogger(project="test", name="first"))
    rows = trackio.SQLiteStorage.get_logs("test", "first")
    assert [(row["step"], row["boundary/score"]) for row in rows if "boundary/score" in row] == [
        (decision.step, pytest.approx(decision.score)) for decision in boundary.history
    ]
    kinds = {key: value["_type"] for row in rows for key, value in row.items() if isinstance(value, dict)}
    assert kinds["boundary/samples"] == kinds["boundary/decisions"] == "trackio.table"
    assert kinds["boundary/vote_shares"] == "trackio.histogram"


def test_without_trackio_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "trackio":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="pip install 'lit-align.trackio.'"):
        TrackioLogger()


@pytest.mark.parametrize(
    "give",
    [
        lambda loggers: log_table(loggers, "a/table", ["text"], [["x"]], 3),
        lambda loggers: log_histogram(loggers, "a/histogram", [1.0, None], 3),
        lambda loggers: log_score_chart(loggers, "a/score", "score", [3], [(0.5, 0.4, 0.6)], 0.5),
    ],
    ids=["table", "histogram", "chart"],
)
def test_loggers_of_numbers_alone_are_passed_over(tmp_path: Path, give: Callable[[list[Logger]], None]) -> None:
    give([CSVLogger(tmp_path, "rows")])
    assert not list(tmp_path.rglob("*.csv"))


def test_a_histogram_of_nothing_is_none(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path, "board")
    log_histogram([board], "empty", [None, float("nan")], 1)
    log_histogram([board], "full", [None, 1.0, float("inf")], 1)
    board.finalize("success")
    events = EventAccumulator(board.log_dir).Reload()
    assert events.Tags()["histograms"] == ["full"] and events.Histograms("full")[0].histogram_value.num == 1
