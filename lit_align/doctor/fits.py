"""Checks that a whole fit works: rounds, measurement, swap, checkpoint, and a resume that changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lit_align import run_folder
from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision
from lit_align.data import AlignmentDataModule
from lit_align.doctor.findings import Bench, Check, Failed, Observation
from lit_align.doctor.models import RandomLlama
from lit_align.judges import RuleJudge
from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.sampling import TransformersSampler
from lit_align.trainer import AlignmentTrainer
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.module import AlignmentModule

MODEL = RandomLlama(hidden=96, layers=2, vocabulary=259)
STEPS = 6
SWAP = 2
SAVED = 3
NEARLY = 1e-2
"""How far trained weights may be from each other on a GPU, whose sums have no fixed order, as a share of their norm."""


class SwapAt(BoundaryCallback):
    """Measures every `SWAP` steps and trains on on-policy pairs from step `SWAP` on, whatever the score."""

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """See :class:`BoundaryCallback`."""
        return Choice(float(step >= SWAP), f"a swap at step {SWAP}, to check it")


class Shares(Callback):
    """Keeps the share of on-policy pairs and the loss of each step."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[float, float]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen[trainer.global_step] = float(batch.on_policy.float().mean()), float(outputs["loss"])


def variety(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """The judge's rule: the number of different characters."""
    return [float(len(set(candidate))) for candidate in candidates]


def check_fit(bench: Bench) -> Observation:
    """Fits a random model, then again from the checkpoint in the middle.

    Raises:
        Failed: a part of the fit is missing, or the resumed fit is another.
    """
    model = MODEL.save(bench.folder / "model")
    whole = bench.folder / "whole"
    seen = run_fit(model, whole, bench)
    decisions = _decisions(whole)
    _demand(_shares(seen) == [float(step > SWAP) for step in range(1, STEPS + 1)], "pairs of the wrong source", seen)
    measured = [decision for decision in decisions if decision["score"] is not None]
    expected = STEPS // SWAP + 1  # also before the first step
    _demand(len(measured) == expected, f"{len(measured)} measurements, expected {expected}", decisions)
    again = bench.folder / "again"
    resumed = run_fit(model, again, bench, whole / run_folder.CHECKPOINTS / "last-previous.ckpt")
    _demand(sorted(resumed) == list(range(SAVED + 1, STEPS + 1)), "the resume began at another step", resumed)
    difference = _difference(whole, again)
    _demand(difference <= (NEARLY if bench.on_gpu else 0.0), f"resumed weights differ by {difference:.1e}", resumed)
    rest = [score for score in _scores(decisions) if score[0] > SAVED]
    _demand(_scores(_decisions(again))[-len(rest) :] == rest or bench.on_gpu, "other decisions after the resume", rest)
    exact = "bit by bit" if difference == 0 else f"to {difference:.1e}"
    text = f"{STEPS} steps, {len(measured)} measurements, a swap; the resumed fit is equal {exact}"
    return Observation(text, {"difference": difference, "losses": [loss for _, loss in seen.values()]})


def run_fit(model: Path, folder: Path, bench: Bench, checkpoint: Path | None = None) -> dict[int, tuple[float, float]]:
    """Fits for `STEPS` steps, from a checkpoint if one is given.

    Returns:
        The share of on-policy pairs and the loss of each step that was made.
    """
    seed_everything(1, verbose=False)
    shares = Shares()
    data = AlignmentDataModule(
        _rows(),
        val_fraction=0.5,
        batch_size=2,
        judge=RuleJudge(variety),
        sampler=TransformersSampler(num_candidates=3, max_new_tokens=8, batch_size=16),
        round_prompts=4,
        reference_cache=None,
        seed=1,
    )
    trainer = AlignmentTrainer(
        default_root_dir=folder,
        max_steps=STEPS,
        accelerator="gpu" if bench.on_gpu else "cpu",
        devices=1,
        enable_progress_bar=False,
        callbacks=[
            shares,
            SwapAt(every_n_steps=SWAP, max_prompts=4, batch_prompts=4),
            AlignmentCheckpoint(every_n_train_steps=SAVED),
        ],
    )
    spec = PolicySpec(str(model), dtype="float32", lora=LoraSpec(r=4))
    module = AlignmentModule(spec, DPO(), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return shares.seen


def _rows() -> list[dict[str, Any]]:
    return [{"prompt": f"Fact {n}?", "chosen": f"Bees make honey, {n}.", "rejected": "No no."} for n in range(16)]


def _demand(right: bool, wrong: str, seen: Any) -> None:
    if not right:
        raise Failed(wrong, seen=seen)


def _shares(seen: dict[int, tuple[float, float]]) -> list[float]:
    return [share for share, _ in seen.values()]


def _decisions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / run_folder.DECISIONS).read_text(encoding="utf-8").splitlines()]


def _scores(decisions: Sequence[dict[str, Any]]) -> list[tuple[int, Any]]:
    return [(decision["step"], decision["score"]) for decision in decisions]


def _difference(whole: Path, again: Path) -> float:
    """The norm of the difference of two runs' trained weights by their norm."""
    one, other = (
        torch.load(folder / run_folder.CHECKPOINTS / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
        for folder in (whole, again)
    )
    weights = torch.cat([value.flatten().float() for _, value in sorted(one.items())])
    others = torch.cat([value.flatten().float() for _, value in sorted(other.items())])
    return ((weights - others).norm() / weights.norm()).item()


CHECKS = (Check("fit/swap-and-resume", check_fit, seconds=10.0),)
