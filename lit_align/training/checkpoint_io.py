"""How a checkpoint gets onto the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from lit_align.files import written_whole


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a file beside its target, waits until it is on the disk and renames it.

    Lightning's own makes it in memory and then in the system's folder for temporary files, which may be too small. A
    path that is an address, such as `s3://bucket/last.ckpt`, is left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the checkpoint whole or not at all.

        Args:
            checkpoint: what a Trainer dumps.
            path: the file.
            storage_options: under "previous" a path at which the file that was at `path` is kept.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path)
            return
        with written_whole(Path(path), durable=True) as part:
            torch.save(checkpoint, part)
            if storage_options is not None:
                _keep(Path(path), Path(storage_options["previous"]))


def write_durably(trainer: Trainer) -> None:
    """Gives a Trainer the above, unless it was given a plugin of somebody's own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = DurableCheckpointIO()


def save_and_keep_previous(trainer: Trainer, path: Path, weights_only: bool) -> None:
    """Saves a checkpoint, and keeps the one that it replaces as `NAME-previous.ckpt`."""
    previous = path.with_name(f"{path.stem}-previous{path.suffix}")
    keeps = isinstance(trainer.strategy.checkpoint_io, DurableCheckpointIO)
    trainer.save_checkpoint(path, weights_only, storage_options={"previous": previous} if keeps else None)


def _keep(target: Path, previous: Path) -> None:
    """Gives a file a second name, which stays with it when another file takes the first."""
    if not target.is_file() or target.is_symlink():
        return
    link = previous.with_name(f"{previous.name}.part")
    link.unlink(missing_ok=True)
    try:
        os.link(target, link)
    except OSError:  # a file system without links
        os.replace(target, previous)
        return
    os.replace(link, previous)
