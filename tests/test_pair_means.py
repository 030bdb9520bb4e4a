"""What is logged are means over pairs: of an optimizer step, or of all held-out ones, on one process and on two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers.logger import Logger

from lit_align.batch import Padded, PairBatch
from lit_align.data import AlignmentDataModule
from lit_align.losses import DPO, SLiCHF
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.reward import RewardDataModule, RewardModule
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.module import AlignmentModule
from lit_align.training.pair_means import PairMeans
from lit_align.training.pair_module import PairModule
from tests.helpers.modules import loader_of
from tests.helpers.processes import DDP, on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")


def still(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.0)


def pairs(seed: int, count: int) -> PairBatch:
    draw = torch.Generator().manual_seed(seed)

    def side() -> Padded:
        lengths = torch.randint(2, 7, (count,), generator=draw).tolist()
        return Padded.from_sequences([torch.randint(3, 300, (n,), generator=draw).tolist() for n in lengths], pad_id=0)

    on_policy = torch.rand(count, generator=draw) < 0.5
    return PairBatch(side(), side(), side(), on_policy, torch.full((count,), torch.nan))


SIZES = [1, 4, 2, 3, 3, 1, 2]
BATCHES = [pairs(seed, size) for seed, size in enumerate(SIZES)]


class Rows(Logger):
    """Keeps what it is given."""

    name, version = "rows", 0

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step or 0, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class Shown(Callback):
    """Keeps what a bar would show at the end of each micro-batch."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        bar, every = trainer.progress_bar_metrics, trainer.callback_metrics
        assert {name: float(every[name]) for name in bar} == pytest.approx(bar)
        self.metrics.append({name: float(value) for name, value in every.items()})


def module_of(kind: str, model: Path) -> PairModule:
    torch.manual_seed(0)
    spec = PolicySpec(str(model))
    return RewardModule(spec, optimizer=still) if kind == "reward" else AlignmentModule(spec, SLiCHF(), optimizer=still)


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    settings = {"max_epochs": 1, "accelerator": "cpu", "enable_checkpointing": False, "log_every_n_steps": 1}
    return Trainer(default_root_dir=folder, **{**settings, **quiet, "logger": False, **options})


def by_hand(module: PairModule, batches: Sequence[PairBatch]) -> dict[str, float]:
    """The mean over all pairs, of the values that the module gives each batch."""
    with torch.no_grad():
        values = [module.evaluate_pairs(batch) for batch in batches]
    return {name: float(torch.cat([v[name].double() for v in values]).mean()) for name in values[0]}


def fit(module: PairModule, folder: Path, **options: Any) -> tuple[Rows, Shown]:
    rows, shown = Rows(), Shown()
    callbacks = [shown, *options.pop("callbacks", [])]
    trainer(folder, callbacks=callbacks, logger=rows, **options).fit(module, loader_of(BATCHES))
    return rows, shown


def close(metrics: dict[str, float], expected: dict[str, float]) -> bool:
    return {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_parts_of_any_size_and_pairs_that_do_not_count() -> None:
    means = PairMeans()
    means.add({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([True, False])})
    means.add({"a": torch.tensor([6.0, torch.nan]), "b": torch.tensor([True, True])}, torch.tensor([True, False]))
    assert means.take(lambda sums: sums) == {"a": 3.0, "b": pytest.approx(2 / 3)}
    assert means.take(lambda sums: sums) == {}, "each part is taken once"


def test_long_sums_keep_every_digit() -> None:
    means = PairMeans()
    for _ in range(1000):
        means.add({"logps": torch.full((1000,), -123.456)})
    assert float(means.take(lambda sums: sums)["logps"]) == float(torch.tensor(-123.456))


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_step_logs_the_mean_over_its_pairs(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    module = module_of(kind, tiny_model)
    rows, shown = fit(module, tmp_path, accumulate_grad_batches=3)
    steps = [BATCHES[0:3], BATCHES[3:6], BATCHES[6:7]]  # the epoch's end cuts the last one short
    expected = [by_hand(module, step) for step in steps]
    assert [step for step, _ in rows.rows] == [0, 1, 2]
    for (_, metrics), values, batches in zip(rows.rows, expected, steps, strict=True):
        assert close(metrics, values)
        if kind == "policy":
            assert metrics["on_policy_share"] == pytest.approx(
                float(torch.cat([b.on_policy for b in batches]).double().mean())
            )
    assert shown.metrics[0] == shown.metrics[1] == {}
    for micro_batch, step in ((2, 0), (4, 0), (5, 1), (6, 2)):
        assert close(shown.metrics[micro_batch], expected[step])


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"accumulate_grad_batches": 2, "log_every_n_steps": 2}, {1: (2, 4), 3: (6, 7)}),
        ({"accumulate_grad_batches": 2, "limit_train_batches": 3}, {0: (0, 2), 1: (2, 3)}),
        ({"accumulate_grad_batches": 4, "max_steps": 1}, {0: (0, 4)}),
        ({"accumulate_grad_batches": 3, "fast_dev_run": True}, {}),
        ({"accumulate_grad_batches": 1, "limit_train_batches": 2}, {0: (0, 1), 1: (1, 2)}),
        (
            {"callbacks": [GradientAccumulationScheduler({0: 2, 1: 3})], "limit_train_batches": 3, "max_epochs": 2},
            {0: (0, 2), 1: (2, 3), 2: (0, 3)},
        ),
    ],
)
def test_whatever_makes_a_step(
    options: dict[str, Any], steps: dict[int, tuple[int, int]], tiny_model: Path, tmp_path: Path
) -> None:
    module = module_of("reward", tiny_model)
    rows, shown = fit(module, tmp_path, **options)
    assert [step for step, _ in rows.rows] == list(steps)
    for (_, metrics), (start, stop) in zip(rows.rows, steps.values(), strict=True):
        assert close(metrics, by_hand(module, BATCHES[start:stop]))
    if options.get("fast_dev_run"):
        assert close(shown.metrics[0], by_hand(module, BATCHES[:1]))


def test_a_fit_that_ended_amid_a_step_leaves_nothing_to_the_next(tiny_model: Path, tmp_path: Path) -> None:
    class Broken(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("amid a step")

    module = module_of("reward", tiny_model)
    with pytest.raises(RuntimeError, match="amid a step"):
        fit(module, tmp_path, accumulate_grad_batches=2, callbacks=[Broken()])
    rows, _ = fit(module, tmp_path, accumulate_grad_batches=2, max_steps=1)
    assert close(rows.rows[0][1], by_hand(module, BATCHES[:2]))


def test_nothing_waits_for_the_device() -> None:
    """A tensor on the meta device has no values: whatever asks for one fails."""
    means, counted = PairMeans(), torch.ones(2, dtype=torch.bool, device="meta")
    for _ in range(3):
        means.add({"loss": torch.empty(2, device="meta"), "wins": counted}, counted)
    assert [mean.device.type for mean in means.take(lambda sums: sums).values()] == ["meta", "meta"]


def test_a_resumed_run_logs_what_the_whole_one_does(tiny_model: Path, tmp_path: Path) -> None:
    def run(steps: int, ckpt: Path | None = None) -> list[dict[str, float]]:
        torch.manual_seed(0)
        rows, module = Rows(), AlignmentModule(PolicySpec(str(tiny_model), lora=LoraSpec(r=2)), DPO())
        data = AlignmentDataModule(write(tmp_path / "train.jsonl", 0, 16), batch_size=2, reference_cache=None)
        task = trainer(
            tmp_path, max_steps=steps, max_epochs=9, accumulate_grad_batches=3, logger=rows, enable_checkpointing=True,
            callbacks=[AlignmentCheckpoint(str(tmp_path), every_n_train_steps=1)],
        )  # fmt: skip
        task.fit(module, data, ckpt_path=ckpt)
        return [metrics for _, metrics in rows.rows]

    whole = run(4)
    run(2)
    resumed = run(4, tmp_path / "last.ckpt")
    assert len(resumed) == 2
    for metrics, expected in zip(resumed, whole[2:], strict=True):
        assert close(metrics, expected)


# -- two processes


def write(path: Path, start: int, count: int) -> str:
    rows = [
        {"prompt": f"question {n}", "chosen": "yes " * (1 + n % 5), "rejected": "no " * (1 + n % 3)}
        for n in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def evaluated(kind: str, model: Path, folder: Path, held_out: int, **options: Any) -> dict[str, Any]:
    """Metrics of a validation and a test, rewards of a prediction, and what a fit with validations logs."""
    torch.manual_seed(0)
    module = module_of(kind, model)
    two = 2 if options else 1
    data_class = RewardDataModule if kind == "reward" else AlignmentDataModule
    data = data_class(
        write(folder / "train.jsonl", 0, 16), write(folder / "val.jsonl", 50, held_out), batch_size=4 // two,
        val_batch_size=2, reference_cache=None,
    )  # fmt: skip
    rows = Rows()
    task = trainer(
        folder, max_steps=2, max_epochs=9, accumulate_grad_batches=2, val_check_interval=1, logger=rows, **options
    )
    found: dict[str, Any] = {
        "val": task.validate(module, data, verbose=False)[0],
        "test": task.test(module, data, verbose=False)[0],
    }
    predicted: Any = task.predict(module, data)
    found["predict"] = [row for batch in predicted for row in batch["margins"]]
    task.fit(module, data)
    found["fit"] = [metrics for _, metrics in rows.rows if "loss" in metrics]
    found["in_fit"] = {name: float(value) for name, value in task.callback_metrics.items() if name.startswith("val/")}
    return found


def both(kind: str, model: Path, folder: Path, held_out: int) -> dict[str, Any]:
    return evaluated(kind, model, folder, held_out, **DDP)


@pytest.mark.parametrize("kind", ["policy", "reward"])
@pytest.mark.parametrize("held_out", [5, 1])
def test_two_processes_log_what_one_does(kind: str, held_out: int, tiny_model: Path, tmp_path: Path) -> None:
    alone = evaluated(kind, tiny_model, tmp_path, held_out)
    zero, one = on_two_ranks(tmp_path, both, kind, tiny_model, tmp_path, held_out)
    for of_rank in (zero, one):
        for key in ("val", "test", "in_fit"):
            assert of_rank[key] == pytest.approx(alone[key], rel=1e-5, abs=1e-5)
        for metrics, expected in zip(of_rank["fit"], alone["fit"], strict=True):
            assert close(metrics, {name: expected[name] for name in expected if name != "epoch"})
    in_turn = [margins[n // 2] for n in range(held_out) for margins in [(zero, one)[n % 2]["predict"]]]
    assert in_turn == pytest.approx(alone["predict"], abs=1e-5)
    assert len(zero["predict"]) + len(one["predict"]) == held_out, "each pair once"
