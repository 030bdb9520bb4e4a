"""Two processes under `fsdp2`, each with a half of every weight, train, measure and save as one process does."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor

import lit_align as la
from lit_align.boundary.switch import Choice
from lit_align.data.selection import BestRandom
from lit_align.judges import RuleJudge
from lit_align.policy.sharding import is_sharded
from lit_align.records import Candidate, CandidateSet, Message
from lit_align.trained import open_run
from lit_align.training.checkpoint_paths import demand_whole
from lit_align.training.sharded_files import read_checkpoint
from tests.helpers.data_fakes import write
from tests.helpers.processes import exit_codes_of_ranks, on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")
PROCESS_OWN = ("seconds", "share_of_training", "sample_seconds", "judge_seconds", "reference_seconds")
IDS = torch.tensor([[3, 5, 7, 9, 11]])


def vowels(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [sum(map(text.count, "aeiou")) / (1 + len(text)) for text in candidates]


class OnPolicy(la.BoundaryCallback):
    """Measures, and takes on-policy pairs whatever comes out."""

    def decide(self, *_: Any) -> Choice:
        return Choice(1.0, "always")


class Losses(Callback):
    """Keeps the loss of each step, and the largest share of a weight that this process holds after it."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.largest_share = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["loss"]))
        if is_sharded(getattr(pl_module, "policy", pl_module)):
            matrices = [p for p in pl_module.policy.parameters() if p.ndim == 2]
            assert all(isinstance(matrix, DTensor) for matrix in matrices)
            self.largest_share = max(matrix.to_local().numel() / matrix.numel() for matrix in matrices)


def fit(folder: Path, files: tuple[str, str], spec: la.PolicySpec, steps: int = 4, **options: Any) -> dict[str, Any]:
    """A run that trains, measures twice, and trains on what it sampled."""
    torch.manual_seed(0)  # of fresh adapters
    measures = options.pop("measures", True)
    data = la.AlignmentDataModule(
        *files, batch_size=2 if options.get("devices") == 2 else 4, judge=RuleJudge(vowels), selector=BestRandom(),
        sampler=la.TransformersSampler(num_candidates=4, max_new_tokens=5), round_prompts=5, seed=1,
        reference_cache=options.pop("reference_cache", None),
    )  # fmt: skip
    module = la.AlignmentModule(spec, la.DPO(), options.pop("reference", None), optimizer=adam)
    boundary = OnPolicy(every_n_steps=2, batch_prompts=3, sequential=False, num_candidates=2)
    losses = Losses()
    trainer = la.AlignmentTrainer(
        default_root_dir=folder, max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[losses, *([boundary] if measures else []), *options.pop("more", [])], **{"devices": 1, **options},
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path="last")
    trainer.strategy.barrier()
    return {
        "losses": losses.values,
        "decisions": [timeless(decision.record()) for decision in boundary.history],
        "share": losses.largest_share,
    }


def evaluate(folder: Path, files: tuple[str, str], spec: la.PolicySpec, cache: str, **options: Any) -> dict[str, Any]:
    """What the other commands make of a run's last checkpoint, each with a Trainer and a module of its own."""

    def parts() -> tuple[la.AlignmentTrainer, la.AlignmentModule, la.AlignmentDataModule]:
        strategy = la.ShardedStrategy(sharded_checkpoint=True) if options else "auto"
        trainer = la.AlignmentTrainer(
            default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, strategy=strategy,
            callbacks=[OnPolicy(max_prompts=8, batch_prompts=3, num_candidates=2)], **{"devices": 1, **options},
        )  # fmt: skip
        data = la.AlignmentDataModule(
            *files, batch_size=2, judge=RuleJudge(vowels), seed=1, reference_cache=cache,
            sampler=la.TransformersSampler(num_candidates=4, max_new_tokens=5),
        )  # fmt: skip
        return trainer, la.AlignmentModule(spec, la.DPO()), data

    trainer, module, data = parts()
    (metrics,) = trainer.validate(module, datamodule=data, ckpt_path="last", verbose=False)
    trainer, module, data = parts()
    measured = trainer.measure(module, data, ckpt_path=str(trainer.last_checkpoint()))
    trainer, module, data = parts()
    computed = trainer.precompute(module, data)["computed"]
    return {"metrics": metrics, "score": measured["score"], "computed": computed}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in PROCESS_OWN}


def sharded(folder: Path, files: tuple[str, str], spec: la.PolicySpec, **options: Any) -> dict[str, Any]:
    strategy = la.ShardedStrategy(sharded_checkpoint=True) if options.pop("parts", False) else "fsdp2"
    return fit(folder, files, spec, devices=2, strategy=strategy, **options)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    rows = [{"prompt": f"Give fact {n * n} on tea.", "candidates": [f"tea {n}" * (n % 4 + 1), f"oolong {n}"]}
            for n in range(22)]  # fmt: skip
    return write(tmp_path / "train.jsonl", rows[:8]), write(tmp_path / "val.jsonl", rows[8:])


def specs(model: Path) -> dict[str, la.PolicySpec]:
    return {
        "lora": la.PolicySpec(str(model), dtype="float32", lora=la.LoraSpec(r=2)),
        "full": la.PolicySpec(str(model), dtype="float32", gradient_checkpointing=True),
    }


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return open_run(folder).load("cpu").model(IDS).logits


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes_run_as_one(kind: str, tmp_path: Path, files: tuple[str, str], tiny_model: Path) -> None:
    spec = specs(tiny_model)[kind]
    alone = fit(tmp_path / "one", files, spec)
    options = {"reference_cache": str(tmp_path / "cache")} if kind == "full" else {}  # else it runs at each step
    zero, one = on_two_ranks(tmp_path, run_with_options, tmp_path / "two", files, spec, options)
    assert (tmp_path / "cache").exists() == (kind == "full")
    assert zero["losses"] == one["losses"] == pytest.approx(alone["losses"], abs=1e-5) and len(zero["losses"]) == 4
    assert zero["decisions"] == one["decisions"]
    assert [d["on_policy_share"] for d in zero["decisions"]] == [d["on_policy_share"] for d in alone["decisions"]]
    assert zero["decisions"] == alone["decisions"]
    assert zero["share"] == 0.5 == one["share"]
    expected = logits(tmp_path / "one")
    torch.testing.assert_close(logits(tmp_path / "two"), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(tmp_path / "two" / "model"), expected, atol=1e-4, rtol=0)


def run_with_options(folder: Path, files: Any, spec: Any, options: dict[str, Any]) -> dict[str, Any]:
    return sharded(folder, files, spec, **options)


def in_two_goes(folder: Path, files: Any, spec: Any, form: str) -> tuple[list[float], list[float]]:
    """The losses of an uninterrupted run, and of one that goes on from its second step."""
    options = {"parts": form == "folder", "measures": False}
    whole = sharded(folder / "whole", files, spec, **options)["losses"]
    first = sharded(folder / "parts", files, spec, steps=2, **options)["losses"]
    return whole, first + sharded(folder / "parts", files, spec, **options)["losses"]


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_resumed_run_goes_on_bit_by_bit(form: str, tmp_path: Path, files: tuple[str, str], tiny_model: Path) -> None:
    """Also with weights in half precision, whose float32 copies are in the checkpoint."""
    spec = la.PolicySpec(str(tiny_model), dtype="bfloat16")
    (whole, parts), _ = on_two_ranks(tmp_path, in_two_goes, tmp_path, files, spec, form)
    assert whole == parts and len(set(whole)) == 4
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert last.is_dir() == (form == "folder")
    content = read_checkpoint(last)
    assert {value.dtype for name, value in content["state_dict"].items()} == {torch.float32}
    torch.testing.assert_close(logits(tmp_path / "parts"), logits(tmp_path / "parts" / "model"), atol=0, rtol=0)
    assert (tmp_path / "parts" / "checkpoints" / "last-previous.ckpt").exists()


def test_one_file_goes_on_with_and_without_the_strategy(
    tmp_path: Path, files: tuple[str, str], tiny_model: Path
) -> None:
    spec = specs(tiny_model)["lora"]
    expected = fit(tmp_path / "one", files, spec, measures=False)["losses"]
    fit(tmp_path / "spread", files, spec, steps=2, measures=False)
    spread, _ = on_two_ranks(tmp_path, run_with_options, tmp_path / "spread", files, spec, {"measures": False})
    assert spread["losses"] == pytest.approx(expected[2:], abs=1e-5)
    on_two_ranks(tmp_path, run_with_options, tmp_path / "joined", files, spec, {"steps": 2, "measures": False})
    joined = fit(tmp_path / "joined", files, spec, measures=False)["losses"]
    assert joined == pytest.approx(expected[2:], abs=1e-5)


def test_a_folder_is_refused_without_the_strategy(tmp_path: Path, files: tuple[str, str], tiny_model: Path) -> None:
    options = {"measures": False, "steps": 1, "parts": True}
    spec = specs(tiny_model)["lora"]
    on_two_ranks(tmp_path, run_with_options, tmp_path / "run", files, spec, options)
    with pytest.raises(ValueError, match=r"each device's part in its own file: resume it with .* fsdp2"):
        fit(tmp_path / "run", files, spec, measures=False)
    (tmp_path / "run" / "checkpoints" / "last.ckpt" / "meta.pt").unlink()
    with pytest.raises(IsADirectoryError, match=r"last.ckpt is a folder"):
        demand_whole(tmp_path / "run" / "checkpoints" / "last.ckpt")


def reward_fit(folder: Path, files: tuple[str, str], spec: la.PolicySpec, **options: Any) -> list[float]:
    torch.manual_seed(0)
    data = la.RewardDataModule(*files, batch_size=4 // options.get("devices", 1), seed=1)
    losses = Losses()
    trainer = la.AlignmentTrainer(
        default_root_dir=folder, max_steps=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[losses], **{"devices": 1, **options},
    )  # fmt: skip
    trainer.fit(la.RewardModule(spec, optimizer=adam), datamodule=data)
    trainer.strategy.barrier()
    return losses.values


def sharded_reward_fit(folder: Path, files: tuple[str, str], spec: la.PolicySpec) -> list[float]:
    return reward_fit(folder, files, spec, devices=2, strategy="fsdp2")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_reward_model_is_spread_too(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"Give fact {n} on tea.", "chosen": f"tea {n}" * (n % 4 + 1), "rejected": f"sea {n}"}
            for n in range(22)]  # fmt: skip
    files = write(tmp_path / "train.jsonl", rows[:16]), write(tmp_path / "val.jsonl", rows[16:])
    spec = specs(tiny_model)[kind]
    alone = reward_fit(tmp_path / "one", files, spec)
    zero, one = on_two_ranks(tmp_path, sharded_reward_fit, tmp_path / "two", files, spec)
    assert zero == one == pytest.approx(alone, abs=1e-5)
    answers = [CandidateSet((Message("user", "Give a fact."),), (Candidate("tea"), Candidate("the sea is deep")))]
    scores = [la.RewardModelJudge(str(tmp_path / run / "reward_model")).score(answers) for run in ("one", "two")]
    assert scores[1][0] == pytest.approx(scores[0][0], abs=1e-4)


def fit_and_evaluate(folder: Path, files: tuple[str, str], spec: la.PolicySpec) -> dict[str, Any]:
    sharded(folder, files, spec, steps=2, measures=False, parts=True)
    return evaluate(folder, files, spec, str(folder / "cache"), devices=2)


def test_the_other_commands_take_a_spread_model(tmp_path: Path, files: tuple[str, str], tiny_model: Path) -> None:
    spec = specs(tiny_model)["lora"]
    fit(tmp_path / "one", files, spec, steps=2, measures=False)
    alone = evaluate(tmp_path / "one", files, spec, str(tmp_path / "cache"))
    zero, one = on_two_ranks(tmp_path, fit_and_evaluate, tmp_path / "two", files, spec)
    assert zero == one and zero["score"] == alone["score"] and zero["computed"] == alone["computed"] > 0
    assert zero["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)


class Die(Callback):
    """Kills the second process in the third step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_the_other(tmp_path: Path, files: tuple[str, str], tiny_model: Path) -> None:
    options = {"measures": False, "more": [Die(), la.AlignmentCheckpoint(every_n_train_steps=1)]}
    codes = exit_codes_of_ranks(2, tmp_path, run_with_options, tmp_path, files, specs(tiny_model)["full"], options)
    assert codes == [1, -signal.SIGKILL]
    said = (tmp_path / "out.txt").read_text()
    assert "error: rank 1 (process " in said and "the last checkpoint is of step 2" in said
