"""Small batches, and modules and Trainers that fit them without a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lit_align.batch import Padded, PairBatch
from lit_align.losses import DPO, PreferenceLoss
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.training.module import AlignmentModule


def padded(*rows: list[int]) -> Padded:
    return Padded.from_sequences(list(rows), pad_id=0)


def batch(seed: int = 0, **options: Any) -> PairBatch:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, 320, (2, 3, 4), generator=generator).tolist()
    prompt, chosen, rejected = (padded(rows[0][i], rows[1][i][: 4 - i]) for i in range(3))
    on_policy = torch.tensor([True, False])
    return PairBatch(prompt, chosen, rejected, on_policy, torch.full((2,), torch.nan), **options)


def loader(size: int = 4) -> DataLoader[PairBatch]:
    return loader_of([batch(seed) for seed in range(size)])


def loader_of(items: Sequence[Any], batch_size: int | None = None) -> DataLoader[Any]:
    """A list serves as a dataset, though torch does not declare it."""
    dataset: Any = items
    return DataLoader(dataset, batch_size=batch_size)


class Recorder(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def trainer(tmp_path: Path, *callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_steps": 3, "max_epochs": 100, "logger": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    checkpoints = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    return Trainer(
        **{**defaults, **quiet, "enable_checkpointing": checkpoints, "log_every_n_steps": 1, **options},
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
    )


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2)


def lora_module(tiny_model: Path, loss: PreferenceLoss | None = None, **options: Any) -> AlignmentModule:
    options.setdefault("optimizer", adamw)
    return AlignmentModule(PolicySpec(str(tiny_model), lora=LoraSpec(r=4)), loss or DPO(), **options)


def full_module(tiny_model: Path, **options: Any) -> AlignmentModule:
    return AlignmentModule(PolicySpec(str(tiny_model)), DPO(), optimizer=adamw, **options)
