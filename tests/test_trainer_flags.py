"""Every argument of Lightning's Trainer means under AlignmentTrainer what Lightning says, or is refused in words."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelSummary, Timer, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.profilers import SimpleProfiler

from lit_align import AlignmentModule, AlignmentTrainer, LoraSpec, PolicySpec
from lit_align.batch import PairBatch
from lit_align.boundary import BoundaryCallback
from lit_align.data import AlignmentDataModule
from lit_align.losses import DPO
from tests.helpers.data_fakes import FakeSampler, LastDigit, Recorder, pair_rows, texts, write
from tests.helpers.modules import loader_of

PAIRS, HELD_OUT, BATCH = 12, 6, 2  # 6 micro-batches an epoch, 3 of held-out pairs
SILENT = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
Flags = dict[str, Any]
Fit = Callable[..., "tuple[Watch, AlignmentTrainer]"]
pytestmark = pytest.mark.filterwarnings("ignore")


class Watch(Callback):
    """Remembers what a fit did, in order."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[str] = []
        self.prompts: list[list[str]] = []
        self.norms: list[float] = []
        self.stop_at = stop_at

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        self.events.append("train")
        if isinstance(batch, PairBatch):
            self.prompts.append(sorted(prompt.split("\n")[1].split("<")[0] for prompt, *_ in texts(batch)))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.stop_at

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        self.events.append("step")
        self.norms.append(float(gradient_of(module).norm()))

    def on_train_epoch_end(self, *_: Any) -> None:
        self.events.append("epoch")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.events.append("sanity" if trainer.sanity_checking else "val")

    def count(self, event: str) -> int:
        return self.events.count(event)


class OneWeight(Recorder):
    """Trains one weight on whatever comes, and logs what it validates."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.policy(torch.ones(1, 1)).sum()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val/loss", torch.tensor(1.0), batch_size=1)


def gradient_of(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def named(flags: Flags) -> str:
    return " ".join(f"{key}={value}" for key, value in flags.items() if key != "plugins") or "defaults"


@pytest.fixture
def rows(tmp_path: Path) -> tuple[str, str]:
    held_out = [{**row, "prompt": f"held out {n}"} for n, row in enumerate(pair_rows(HELD_OUT))]
    return write(tmp_path / "train.jsonl", pair_rows(PAIRS)), write(tmp_path / "val.jsonl", held_out)


@pytest.fixture(autouse=True)
def _torch_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undoes what the Trainer's flags set for the whole process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Lightning sets it for `deterministic`, and leaves it set
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture
def fit(rows: tuple[str, str], tmp_path: Path) -> Fit:
    """A fit with the given flags: what it did, and its trainer."""

    def run(
        data: Flags | None = None, watch: Watch | None = None, module: Any = None, **flags: Any
    ) -> tuple[Watch, AlignmentTrainer]:
        watch = watch or Watch()
        settings = {"accelerator": "cpu", **({} if flags.get("barebones") else SILENT), **flags}
        settings["callbacks"] = [watch, *settings.get("callbacks", [])]
        trainer = AlignmentTrainer(default_root_dir=tmp_path / "run", **settings)
        pairs = AlignmentDataModule(*rows, batch_size=BATCH, **(data or {}))
        trainer.fit(module or OneWeight(), datamodule=pairs)
        return watch, trainer

    return run


@pytest.fixture
def policy(tiny_model: Path) -> AlignmentModule:
    spec = PolicySpec(str(tiny_model), lora=LoraSpec(r=2))
    return AlignmentModule(spec, DPO(), optimizer=lambda parameters: torch.optim.SGD(parameters, 1.0))


TABLE: list[tuple[Flags, dict[str, int]]] = [
    ({}, {"train": 6, "step": 6, "val": 3}),  # one epoch, validated at its end
    ({"max_steps": 4}, {"train": 4, "step": 4, "val": 0}),
    ({"max_steps": 8}, {"train": 8, "step": 8, "val": 3}),
    ({"max_steps": 0}, {"train": 0, "step": 0}),
    ({"max_epochs": 2}, {"train": 12, "val": 6}),
    ({"max_epochs": 0}, {"train": 0}),
    ({"max_epochs": 2, "max_steps": 7}, {"step": 7}),
    ({"max_epochs": 1, "max_steps": 70}, {"step": 6}),
    ({"max_epochs": -1, "max_steps": 7}, {"step": 7}),
    ({"min_epochs": 2, "max_epochs": 3}, {"train": 18}),
    ({"min_steps": 4}, {"train": 6}),
    ({"limit_train_batches": 2, "max_epochs": 2}, {"train": 4, "val": 6}),
    ({"limit_train_batches": 0.5, "max_epochs": 2}, {"train": 6}),
    ({"limit_train_batches": 1.0}, {"train": 6}),
    ({"limit_train_batches": 0}, {"train": 0}),
    ({"limit_val_batches": 1}, {"val": 1}),
    ({"limit_val_batches": 0.7}, {"val": 2}),
    ({"limit_val_batches": 0}, {"val": 0, "train": 6}),
    ({"val_check_interval": 0.5}, {"val": 6}),
    ({"val_check_interval": 2}, {"val": 9}),
    ({"val_check_interval": 4, "check_val_every_n_epoch": None, "max_epochs": 2}, {"val": 9}),
    ({"val_check_interval": timedelta(hours=1), "max_epochs": 2}, {"val": 0}),
    ({"check_val_every_n_epoch": 2, "max_epochs": 4}, {"val": 6}),
    ({"num_sanity_val_steps": 2}, {"sanity": 2, "val": 3}),
    ({"num_sanity_val_steps": -1}, {"sanity": 3}),
    ({"accumulate_grad_batches": 2}, {"train": 6, "step": 3}),
    ({"accumulate_grad_batches": 2, "max_steps": 2}, {"train": 4, "step": 2}),
    ({"accumulate_grad_batches": 2, "limit_train_batches": 3}, {"train": 3, "step": 2}),
    ({"fast_dev_run": True}, {"train": 1, "step": 1, "val": 1}),
    ({"fast_dev_run": 2}, {"train": 2, "val": 2}),
    ({"overfit_batches": 2, "max_epochs": 3}, {"train": 6, "val": 6}),
    ({"overfit_batches": 0.5, "max_epochs": 2}, {"train": 6, "val": 2}),
    ({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}, {"train": 12, "val": 6}),
    ({"use_distributed_sampler": True}, {"train": 6, "val": 3}),
    ({"num_nodes": 1, "devices": 1, "strategy": "auto"}, {"train": 6}),
    ({"enable_autolog_hparams": False, "model_registry": "a/b"}, {"train": 6}),
    ({"barebones": True}, {"train": 6, "val": 3}),
]
ON_A_POLICY: list[Flags] = [
    {"detect_anomaly": True, "deterministic": True}, {"deterministic": "warn", "gradient_clip_algorithm": "value"},
    {"benchmark": True, "sync_batchnorm": True, "precision": "32-true"}, {"barebones": True},
    {"plugins": [LightningEnvironment(), TorchCheckpointIO()]}, {"overfit_batches": 1, "max_epochs": 6},
]  # fmt: skip
ELSEWHERE = {
    "accelerator", "logger", "callbacks", "default_root_dir", "enable_checkpointing", "enable_progress_bar",
    "enable_model_summary", "gradient_clip_val", "inference_mode", "profiler", "max_time", "log_every_n_steps",
    "limit_test_batches", "limit_predict_batches",
}  # fmt: skip
"""Arguments with a test of their own below, or in every fit here."""


def events_of_lightning(folder: Path, stop_at: int | None = None, **flags: Any) -> list[str]:
    """What the plain Trainer does with plain loaders of as many batches."""
    watch = Watch(stop_at)
    limits = {"max_epochs": None if "max_steps" in flags else 1, "num_sanity_val_steps": 0}
    settings = {"accelerator": "cpu", **({} if flags.get("barebones") else SILENT), **limits, **flags}
    trainer = Trainer(callbacks=[watch], default_root_dir=folder, enable_model_summary=False, **settings)
    train, val = (loader_of(range(size), BATCH) for size in (PAIRS, HELD_OUT))
    trainer.fit(OneWeight(), train, val)
    return watch.events


@pytest.mark.parametrize(("flags", "counts"), TABLE, ids=[named(flags) for flags, _ in TABLE])
def test_a_fit_does_what_lightning_does(fit: Fit, tmp_path: Path, flags: Flags, counts: dict[str, int]) -> None:
    watch, _ = fit(**flags)
    assert {event: watch.count(event) for event in counts} == counts
    assert watch.events == events_of_lightning(tmp_path / "plain", **flags)


@pytest.mark.parametrize("flags", ON_A_POLICY, ids=named)
def test_a_policy_learns_with_each_flag(fit: Fit, policy: AlignmentModule, flags: Flags) -> None:
    watch, _ = fit(module=policy, **{"limit_val_batches": 1, **flags})
    assert watch.count("step") == 6 and all(0 < norm < float("inf") for norm in watch.norms)


def test_every_argument_of_the_trainer_is_tried() -> None:
    tried = {flag for flags in [*(flags for flags, _ in TABLE), *ON_A_POLICY] for flag in flags} | ELSEWHERE
    assert set(inspect.signature(Trainer.__init__).parameters) - {"self"} == tried


@pytest.mark.parametrize(("batches", "overfitted"), [(1, 1), (2, 2), (0.5, 3), (99, 6)])
def test_overfit_batches_trains_on_the_same_pairs_in_every_epoch(fit: Fit, batches: Any, overfitted: int) -> None:
    watch, trainer = fit(overfit_batches=batches, max_epochs=3)
    first = watch.prompts[:overfitted]
    assert watch.prompts == first * 3, "the same micro-batches, in the same order"
    assert {prompt for batch in first for prompt in batch} == {f"q{n}" for n in range(overfitted * BATCH)}
    assert trainer.datamodule.counts["outside_overfit_batches"] == PAIRS - overfitted * BATCH  # type: ignore[attr-defined]


def test_overfit_batches_goes_with_accumulation(fit: Fit) -> None:
    watch, _ = fit(overfit_batches=2, accumulate_grad_batches=2, max_epochs=3)
    assert watch.count("step") == 3 and watch.prompts == watch.prompts[:2] * 3


def test_a_checkpoint_goes_on_with_the_pairs_that_it_overfits_alone(fit: Fit, tmp_path: Path) -> None:
    from lit_align.training.checkpoint import AlignmentCheckpoint

    keep = {"enable_checkpointing": True, "callbacks": [AlignmentCheckpoint()], "max_steps": 3}
    _, trainer = fit(overfit_batches=2, **keep)
    with pytest.raises(ValueError, match="pairs"):
        trainer.fit_loop.epoch_loop.max_steps = 6
        data = AlignmentDataModule(str(tmp_path / "train.jsonl"), str(tmp_path / "val.jsonl"), batch_size=BATCH)
        trainer.overfit_batches = 3  # type: ignore[attr-defined]
        trainer.fit(OneWeight(), datamodule=data, ckpt_path="last")


@pytest.mark.parametrize("brings", ["boundary", "share"])
def test_overfit_batches_refuses_pairs_that_would_come_in_between(fit: Fit, brings: str) -> None:
    callbacks = [BoundaryCallback(every_n_steps=2)] if brings == "boundary" else []
    data = {"sampler": FakeSampler(), "judge": LastDigit(), "on_policy_share": 0.5 if brings == "share" else 0.0}
    with pytest.raises(ValueError, match=r"overfit_batches trains on the same static pairs again and .*brings"):
        fit(data=data, overfit_batches=1, callbacks=callbacks)


def test_reloading_the_data_changes_no_pair(fit: Fit) -> None:
    plain, _ = fit(max_epochs=2)
    reloaded, _ = fit(max_epochs=2, reload_dataloaders_every_n_epochs=1)
    assert plain.prompts == reloaded.prompts
    assert plain.prompts[:6] != plain.prompts[6:], "another order each epoch"


@pytest.mark.parametrize("limit", ["00:00:00:01", timedelta(seconds=1), {"seconds": 1}], ids=str)
def test_max_time_alone_ends_a_run(fit: Fit, limit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    watch, trainer = fit(max_time=limit, limit_val_batches=0)
    (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
    assert watch.count("train") > 0
    assert timer.time_remaining() <= 0
    assert "The time limit ended the run." in capsys.readouterr().out


def test_the_command_line_gives_max_time_as_it_is_written() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AlignmentTrainer, "trainer")
    settings = parser.parse_args(["--trainer.max_time=00:02:00:05"])
    assert settings.trainer.max_time == "00:02:00:05", "as a timedelta it would be two minutes"


def test_a_timer_of_ones_own_lifts_the_limit_of_one_epoch_and_max_epochs_still_counts(fit: Fit) -> None:
    watch, _ = fit(watch=Watch(stop_at=8), callbacks=[Timer(timedelta(hours=1))], limit_val_batches=0)
    assert watch.count("train") == 8  # not one epoch of 6
    watch, _ = fit(max_time=timedelta(hours=1), max_epochs=1)
    assert watch.count("train") == 6


@pytest.mark.parametrize(
    "flags", [{}, {"min_steps": 4}, {"min_steps": 8}, {"min_epochs": 1}, {"min_epochs": 2}], ids=named
)
def test_a_run_that_would_stop_takes_its_least_steps_first(fit: Fit, tmp_path: Path, flags: dict[str, int]) -> None:
    watch, _ = fit(watch=Watch(stop_at=2), max_epochs=3, **flags)
    assert watch.events == events_of_lightning(tmp_path / "plain", stop_at=2, max_epochs=3, **flags)
    assert watch.count("step") >= max(2, flags.get("min_steps", 0), 6 * flags.get("min_epochs", 0))


def test_more_epochs_than_one_where_so_many_are_the_least(fit: Fit) -> None:
    watch, _ = fit(min_epochs=2, limit_val_batches=0)
    assert watch.count("step") == 12


def test_early_stopping_sees_each_validation(fit: Fit) -> None:
    stopping = EarlyStopping("val/loss", patience=2)
    watch, _ = fit(callbacks=[stopping], max_steps=50, val_check_interval=2, check_val_every_n_epoch=None)
    assert (watch.count("step"), watch.count("val")) == (6, 9)


@pytest.mark.parametrize(
    ("flags", "norm", "value"),
    [
        ({}, 1.0, None),
        ({"gradient_clip_val": 0.25}, 0.25, None),
        ({"gradient_clip_val": None}, None, None),
        ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, None, 0.01),
    ],
    ids=str,
)
def test_gradients_are_clipped(
    fit: Fit, policy: AlignmentModule, flags: Flags, norm: float | None, value: float | None
) -> None:
    class StepOf(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # after the closure the gradients are those that are stepped by
            loss = closure()
            clipped.append(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"] if p.grad is not None]))
            super().step()
            return loss

    clipped: list[torch.Tensor] = []
    policy.loss = DPO(beta=1.0)
    policy._make_optimizer = lambda parameters: StepOf(parameters, 1.0)
    watch, _ = fit(module=policy, max_steps=3, limit_val_batches=0, **flags)
    assert len(clipped) == 3 and watch.norms[0] > 1, "large enough to be clipped"
    if value is not None:
        assert all(float(gradient.abs().max()) == pytest.approx(value) for gradient in clipped)
    else:
        expected = [min(size, norm or size) for size in watch.norms]
        assert [float(gradient.norm()) for gradient in clipped] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("inference", [True, False])
def test_commands_run_in_inference_mode_unless_it_is_off(
    rows: tuple[str, str], policy: AlignmentModule, tmp_path: Path, inference: bool
) -> None:
    class Look(Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    modes: list[tuple[bool, bool]] = []
    flags: Flags = {"inference_mode": inference, "callbacks": Look(), "accelerator": "cpu", **SILENT}
    trainer = AlignmentTrainer(default_root_dir=tmp_path, **flags)
    trainer.validate(policy, datamodule=AlignmentDataModule(*rows, batch_size=BATCH), verbose=False)
    assert modes == [(inference, False)] * 3


def test_flags_reach_torch(fit: Fit) -> None:
    seen: dict[str, Any] = {}

    class Look(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen["deterministic"] = torch.are_deterministic_algorithms_enabled()
            seen["benchmark"] = torch.backends.cudnn.benchmark
            seen["anomaly"] = torch.is_anomaly_enabled()

    fit(callbacks=[Look()], max_steps=1, deterministic=True, benchmark=True, detect_anomaly=True)
    assert seen == {"deterministic": True, "benchmark": True, "anomaly": True}


def test_barebones_is_bare(fit: Fit) -> None:
    _, trainer = fit(barebones=True)
    assert not trainer.loggers and trainer.progress_bar_callback is None and trainer.checkpoint_callback is None
    with pytest.raises(ValueError, match="barebones=True, enable_checkpointing=True"):
        AlignmentTrainer(barebones=True, enable_checkpointing=True, accelerator="cpu")


def test_switches_and_kinds_of_callbacks(tmp_path: Path) -> None:
    def callbacks(**flags: Any) -> set[str]:
        trainer = AlignmentTrainer(default_root_dir=tmp_path, accelerator="cpu", **flags)
        return {type(callback).__name__ for callback in trainer.callbacks}  # type: ignore[attr-defined]

    always = {"RankWatch", "ReportCallback", "RunSummary", "RunWatch"}
    plain = always | {"AlignmentCheckpoint", "PlainProgress", "SaveModel"}
    assert callbacks() == plain
    assert callbacks(enable_progress_bar=False) == plain - {"PlainProgress"}
    assert callbacks(enable_checkpointing=False) == plain - {"AlignmentCheckpoint", "SaveModel"}
    assert any("ModelSummary" in kind for kind in callbacks(enable_model_summary=True))
    assert callbacks(callbacks=ModelSummary()) == plain | {"ModelSummary"}
    assert callbacks(callbacks=[TQDMProgressBar()]) == always | {"AlignmentCheckpoint", "SaveModel", "TQDMProgressBar"}


def test_loggers_rows_and_profiler_go_where_they_are_sent(fit: Fit, policy: AlignmentModule, tmp_path: Path) -> None:
    profiler = SimpleProfiler(dirpath=tmp_path, filename="profile")
    logs = CSVLogger(tmp_path / "logs")
    fit(module=policy, logger=logs, log_every_n_steps=3, enable_checkpointing=True, profiler=profiler)
    header, *lines = (line.split(",") for line in Path(logs.log_dir, "metrics.csv").read_text().splitlines())
    assert [line[header.index("step")] for line in lines if line[header.index("loss")]] == ["2", "5"]
    assert "run_training_batch" in (tmp_path / "fit-profile.txt").read_text()
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 6


@pytest.mark.parametrize(("command", "limit"), [("test", "limit_test_batches"), ("predict", "limit_predict_batches")])
@pytest.mark.parametrize(("value", "batches"), [(2, 2), (0.4, 1), (1.0, 3)])
def test_commands_take_so_many_batches(
    rows: tuple[str, str], policy: AlignmentModule, tmp_path: Path, command: str, limit: str, value: Any, batches: int
) -> None:
    flags: Flags = {limit: value, "accelerator": "cpu", **SILENT}
    trainer = AlignmentTrainer(default_root_dir=tmp_path, **flags)
    getattr(trainer, command)(policy, datamodule=AlignmentDataModule(*rows, batch_size=BATCH))
    loop = trainer.test_loop if command == "test" else trainer.predict_loop
    assert sum(map(int, loop.max_batches)) == batches


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"val_check_interval": 50}, "must be less than or equal to the number of the training batches"),
        ({"overfit_batches": 0.01}, "Please increase the"),
        ({"gradient_clip_algorithm": "median"}, "gradient_clip_algorithm"),
        ({"profiler": "simpl"}, "it can only be one of"),
        ({"strategy": "ddpp"}, "invalid strategy name"),
        ({"max_time": "tomorrow"}, "is not a valid duration"),
        ({"limit_train_batches": -1}, "limit_train_batches"),
        ({"accumulate_grad_batches": 0}, "expected accumulate_grad_batches to be at least 1"),
    ],
    ids=str,
)
def test_what_cannot_hold_is_refused_in_words(fit: Fit, flags: Flags, message: str) -> None:
    with pytest.raises((MisconfigurationException, ValueError), match=message):
        fit(**flags)
