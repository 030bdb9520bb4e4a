"""A run on two processes measures the same scores, makes the same rounds and keeps the same samples as on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
from tests.helpers.data_fakes import texts, write
from tests.helpers.processes import DDP, on_two_ranks

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
