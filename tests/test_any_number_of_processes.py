"""A run takes the same pairs, steps and decisions on any number of processes, also where that changes on a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lit_align import AlignmentTrainer
from lit_align.boundary import BoundaryCallback
from lit_align.boundary.switch import Choice
from lit_align.data import AlignmentDataModule
from lit_align.data.selection import BestRandom
from lit_align.judges import RuleJudge
from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.report import WinRateCallback
from lit_align.sampling import TransformersSampler
from lit_align.training.module import AlignmentModule
from tests.helpers.boundary_fakes import quiet_trainer
from tests.helpers.data_fakes import Recorder, texts, write
from tests.helpers.processes import DDP, on_ranks, on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")
PROCESS_OWN = ("seconds", "share_of_training", "sample_seconds", "judge_seconds", "reference_seconds")


def vowels(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [sum(map(text.count, "aeiou")) / (1 + len(text)) for text in candidates]


class OnPolicy(BoundaryCallback):
    """Measures, and takes on-policy pairs whatever comes out."""

    def decide(self, *_: Any) -> Choice:
        return Choice(1.0, "always")


class Seen(AlignmentModule):
    """Keeps the pairs that it is given."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        seen.append(texts(batch))
        return super().training_step(batch, batch_idx)


seen: list[Any] = []


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in PROCESS_OWN} for row in rows]


def fit(folder: Path, files: tuple[str, str], model: Path, **options: Any) -> dict[str, Any]:
    seen.clear()
    data = AlignmentDataModule(
        *files, batch_size=2 if options else 4, judge=RuleJudge(vowels), selector=BestRandom(),
        sampler=TransformersSampler(num_candidates=4, max_new_tokens=5), round_prompts=5, seed=1, reference_cache=None,
    )  # fmt: skip
    module = Seen(PolicySpec(str(model), dtype="float32", lora=LoraSpec(r=2)), DPO())
    boundary = OnPolicy(every_n_steps=2, batch_prompts=3, sequential=False, num_candidates=2, samples_to_keep=99)
    win_rate = WinRateCallback(num_prompts=5)
    trainer = quiet_trainer(folder, boundary, win_rate, max_steps=4, **options)
    trainer.fit(module, datamodule=data)
    samples = folder / "samples.jsonl"
    return {
        "seen": list(seen),
        "decisions": timeless([decision.record() for decision in boundary.history]),
        "samples": [json.loads(line) for line in samples.read_text().splitlines()],
        "round": timeless([data.round_stats])[0],
        "answers": win_rate.answers,
    }


def on_two(folder: Path, files: tuple[str, str], model: Path) -> dict[str, Any]:
    return fit(folder, files, model, **DDP)


def test_two_processes_run_as_one(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"Give fact {n * n} on tea.", "candidates": [f"tea {n}", f"oolong {n}"]} for n in range(22)]
    files = write(tmp_path / "train.jsonl", rows[:8]), write(tmp_path / "val.jsonl", rows[8:])
    alone = fit(tmp_path / "one", files, tiny_model)
    zero, one = on_two_ranks(tmp_path, on_two, tmp_path / "two", files, tiny_model)
    assert zero["decisions"] == one["decisions"] == alone["decisions"]
    assert alone["decisions"][0]["prompts"] == 7 and alone["decisions"][0]["votes_on"] > 0
    assert zero["samples"] == alone["samples"], "those of all ranks, in the order of the draw"
    assert sum(row["step"] == 0 for row in alone["samples"]) == alone["decisions"][0]["prompts"]
    assert zero["round"] == one["round"] == alone["round"] and zero["answers"] == alone["answers"]
    steps = zip(zero["seen"], one["seen"], alone["seen"], strict=True)
    assert all(sorted([*first, *second]) == sorted(pairs) for first, second, pairs in steps), "the same pairs a step"


class HalfOnPolicy(BoundaryCallback):
    """Measures, and takes a share of on-policy pairs that depends on the score."""

    def decide(self, step: int, result: Any, *_: Any) -> Choice:
        return Choice(0.25 + result.score / 2, "so much")


class Losses(Callback):
    """Keeps the loss of each optimizer step, as it is logged."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.by_step[trainer.global_step] = float(trainer.callback_metrics["loss"])


def train(folder: Path, files: tuple[str, str], model: Path, world: int, steps: int) -> dict[str, Any]:
    """A pass over 24 rows in six steps of four pairs, or a part of it; goes on from what is in the folder."""
    torch.manual_seed(0)
    seen.clear()
    data = AlignmentDataModule(
        *files, batch_size=4 // world, judge=RuleJudge(vowels), round_prompts=6, seed=1, reference_cache=None,
        sampler=TransformersSampler(num_candidates=4, max_new_tokens=5),
    )  # fmt: skip
    module = Seen(PolicySpec(str(model), dtype="float32", lora=LoraSpec(r=2)), DPO(), optimizer=momentum)
    boundary = HalfOnPolicy(every_n_steps=2, batch_prompts=3, sequential=False, num_candidates=2)
    losses = Losses()
    trainer = AlignmentTrainer(
        default_root_dir=folder, max_epochs=1, max_steps=steps, accelerator="cpu", logger=False,
        enable_progress_bar=False, callbacks=[boundary, losses], **(DDP | {"devices": world} if world > 1 else {}),
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path="last")
    return {
        "seen": list(seen),
        "losses": losses.by_step,
        "decisions": timeless([decision.record() for decision in boundary.history]),
        "weights": {name: value.detach() for name, value in module.named_parameters() if value.requires_grad},
    }


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    pairs = [{"prompt": f"Give fact {n * n} on tea.", "chosen": f"tea {n}", "rejected": "tea"} for n in range(24)]
    held_out = [{"prompt": f"Why is {n} tea?", "candidates": [f"tea {n}", f"oolong {n}"]} for n in range(14)]
    return write(folder / "train.jsonl", pairs), write(folder / "val.jsonl", held_out)


@pytest.fixture(scope="module")
def alone(files: tuple[str, str], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    found: dict[str, Any] = on_ranks(1, folder, train, folder / "run", files, tiny_model, 1, 6)[0]
    moved = max(float(weight.abs().max()) for name, weight in found["weights"].items() if "lora_B" in name)
    assert moved > 1e-3 and sorted(found["losses"]) == [1, 2, 3, 4, 5, 6]
    assert len({pair[3] for pairs in found["seen"] for pair in pairs}) == 2, "of both sources"
    return found


@pytest.mark.parametrize("parts", [((2, 6),), ((4, 6),), ((1, 1), (2, 3), (4, 4), (1, 6))])
def test_losses_weights_and_decisions_on_other_processes(
    parts: tuple[tuple[int, int], ...], alone: dict[str, Any], files: tuple[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    """Each part is (processes, step that it ends at) and goes on from the one before: a pass, no pair lost or twice."""
    steps: list[list[Any]] = []
    for world, last_step in parts:
        since = len(steps)
        ranks = on_ranks(world, tmp_path, train, tmp_path / "run", files, tiny_model, world, last_step)
        for of_ranks in zip(*(rank["seen"] for rank in ranks), strict=True):
            steps.append([pair for together in zip(*of_ranks, strict=True) for pair in together])
    assert steps == alone["seen"]
    for rank in ranks:
        assert rank["decisions"] == alone["decisions"] and len(rank["decisions"]) > 2
        assert rank["losses"] == pytest.approx({n: alone["losses"][n] for n in range(since + 1, 7)}, abs=1e-6)
        torch.testing.assert_close(rank["weights"], alone["weights"], rtol=0, atol=1e-6)


def record(folder: Path, rows: str, batch_size: int, accumulation: int, last_step: int) -> list[Any]:
    """The pairs of a fit of one pass, by micro-batch, that goes on from what is in the folder."""
    module = Recorder()
    trainer = AlignmentTrainer(
        default_root_dir=folder, max_epochs=1, max_steps=last_step, accumulate_grad_batches=accumulation, logger=False,
        accelerator="cpu", enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=AlignmentDataModule(rows, batch_size=batch_size, seed=1), ckpt_path="last")
    return [texts(batch) for _, batch in module.seen]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "steps"), [(2, 2, 3), (2, 1, 6), (1, 4, 3), (6, 1, 2), (8, 1, 2), (4, 3, 1)]
)
def test_a_pass_ends_with_its_last_pair_though_batches_have_changed(
    batch_size: int, accumulation: int, steps: int, files: tuple[str, str], tmp_path: Path
) -> None:
    """Of 24 pairs in batches of four, after three steps; where the rest fills no step, the next pass begins in it."""
    before = record(tmp_path, files[0], 4, 1, last_step=3)
    after = record(tmp_path, files[0], batch_size, accumulation, last_step=-1)
    assert [len(batch) for batch in after] == [batch_size] * accumulation * steps
    pairs = [pair for batch in before + after for pair in batch]
    assert len(set(pairs[:24])) == 24
