"""The schedules with the real module and the real data, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from callbacks import AdaptiveInterval, Alternating, AlwaysOffPolicy, AlwaysOnPolicy, FixedSwitch
from lit_align.boundary import BoundaryCallback
from lit_align.data.datamodule import AlignmentDataModule
from lit_align.judges import RuleJudge
from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.sampling import TransformersSampler
from lit_align.training.module import AlignmentModule
from tests.helpers.boundary_fakes import quiet_trainer


def mean_letter(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [sum(map(ord, candidate)) / (1 + len(candidate)) for candidate in candidates]


def write_rows(path: Path, strong: bool) -> Path:
    """Static candidates that win or lose against anything a random model says."""
    texts = [letter * 3 for letter in "\U0010ffff\U0010fffe"] if strong else ["\x01", "\x01\x01"]
    rows = [{"prompt": f"Give fact {n} about tea.", "candidates": texts} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Seen(AlignmentModule):
    """Remembers the share of on-policy pairs in each micro-batch."""

    shares: list[float]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.shares.append(float(batch.on_policy.float().mean()))
        return super().training_step(batch, batch_idx)


def fit(folder: Path, model: Path, schedule: BoundaryCallback, strong: bool) -> list[float]:
    data = AlignmentDataModule(
        str(write_rows(folder / "rows.jsonl", strong)),
        val_fraction=0.34,
        batch_size=2,
        judge=RuleJudge(mean_letter),
        sampler=TransformersSampler(num_candidates=2, max_new_tokens=6),
        round_prompts=4,
    )
    module = Seen(PolicySpec(str(model), lora=LoraSpec(r=2)), DPO())
    module.shares = []
    quiet_trainer(folder, schedule, max_steps=4).fit(module, datamodule=data)
    return module.shares


@pytest.mark.parametrize(
    ("schedule", "strong", "shares"),
    [
        (BoundaryCallback(every_n_steps=2), True, [0, 0, 0, 0]),
        (BoundaryCallback(every_n_steps=2), False, [0, 0, 0, 0]),  # undecided on two prompts
        (BoundaryCallback(every_n_steps=2, sequential=False, alpha=0.5), False, [1, 1, 1, 1]),
        (AdaptiveInterval(every_n_steps=2, max_stretch=1, sequential=False, alpha=0.5), False, [1, 1, 1, 1]),
        (FixedSwitch(at_step=3), True, [0, 0, 0, 1]),
        (Alternating(period=1), True, [0, 1, 0, 1]),
        (AlwaysOffPolicy(every_n_steps=4, max_prompts=3), False, [0, 0, 0, 0]),
        (AlwaysOnPolicy(), True, [1, 1, 1, 1]),
    ],
)
def test_the_pairs_come_from_the_source_that_the_schedule_says(
    tmp_path: Path, tiny_model: Path, schedule: BoundaryCallback, strong: bool, shares: list[float]
) -> None:
    assert fit(tmp_path, tiny_model, schedule, strong) == shares
    decisions = [json.loads(line) for line in (tmp_path / "boundary.jsonl").read_text().splitlines()]
    scores = {decision["score"] for decision in decisions} - {None}
    assert scores <= {0.0 if strong else 1.0}
    assert (tmp_path / "samples.jsonl").exists() == bool(scores)
