"""A run that was stopped after its last step: what its end had not come to is done by the resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from lit_align import AlignmentTrainer, BoundaryCallback
from lit_align.data import AlignmentDataModule
from lit_align.html_report import ReportCallback
from lit_align.judges import RuleJudge
from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.report import WinRateCallback
from lit_align.sampling import TransformersSampler
from lit_align.training.module import AlignmentModule

STEPS = 2


class Away(Exception):
    """The judge of the last step."""


class FailAtTheEnd(Callback):
    """An error once the last step is saved, and before the win rate."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        raise Away


class AskedAtTheEnd(Callback):
    """A callback of a user's that has something to do at a run's end."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def on_resume_at_end(self, trainer: Any, pl_module: Any) -> None:
        self.asked.append(trainer.global_step)


def variety(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [len(set(text)) / (1 + len(text)) for text in candidates]


def fit(folder: Path, model: Path, rows: list[dict[str, Any]], *more: Callback, resume: bool = False) -> None:
    seed_everything(2)
    data = AlignmentDataModule(
        train=rows, val_fraction=0.4, batch_size=2, seed=4, round_prompts=3, judge=RuleJudge(variety),
        sampler=TransformersSampler(num_candidates=2, max_new_tokens=4),
    )  # fmt: skip
    module = AlignmentModule(
        PolicySpec(model=str(model), lora=LoraSpec(r=2)),
        DPO(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    boundary = BoundaryCallback(every_n_steps=STEPS, max_prompts=3, sequential=False, alpha=0.9)
    trainer = AlignmentTrainer(
        default_root_dir=folder, max_steps=STEPS, accelerator="cpu", enable_progress_bar=False,
        callbacks=[*more, boundary, WinRateCallback(num_prompts=2), ReportCallback("end")],
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path="last" if resume else None)


def timeless(value: Any) -> Any:
    """Without what a clock says."""
    clock = ("seconds", "activities", "share_of_training", "environment", "outputs", "load")
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in clock}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def test_what_the_end_had_not_come_to_is_done(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Give fact {n}.", "chosen": f"a longer tea {n}", "rejected": f"tea {n}"} for n in range(16)]
    fit(tmp_path / "whole", tiny_model, rows)
    stopped = tmp_path / "stopped"
    with pytest.raises(Away):
        fit(stopped, tiny_model, rows, FailAtTheEnd())
    assert not (stopped / "answers.jsonl").exists()
    capsys.readouterr()
    of_user = AskedAtTheEnd()
    fit(stopped, tiny_model, rows, of_user, resume=True)
    assert of_user.asked == [STEPS]
    assert "Nothing is left to train" in capsys.readouterr().out
    for name in ("answers.jsonl", "boundary.jsonl", "summary.json"):
        texts = [(folder / name).read_text() for folder in (tmp_path / "whole", stopped)]
        parts = [text.splitlines() if name.endswith("l") else [text] for text in texts]
        expected, resumed = ([timeless(json.loads(part)) for part in lines] for lines in parts)
        assert resumed == expected, name
    assert {path.name for path in stopped.iterdir()} >= {"model", "report.html", "samples.jsonl"}
