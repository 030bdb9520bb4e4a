"""Which checkpoint of a run "last" is, and what is no checkpoint."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lit_align.run_parts import datamodule_of
from lit_align.training.resumed_progress import count_anew
from lit_align.training.sharded import NAME, ShardedStrategy
from lit_align.training.sharded_files import is_sharded, read_values


class CheckpointPaths(_CheckpointConnector):
    """Lightning's, for which "last" is what the Trainer's `last_checkpoint()` finds, and which refuses broken files."""

    def _parse_ckpt_path(self, state_fn: TrainerFn, ckpt_path: Any, model_provided: bool, model_connected: bool) -> Any:
        trainer = cast(Any, self.trainer)
        if ckpt_path == "last" and state_fn != TrainerFn.FITTING:
            ckpt_path = trainer.last_checkpoint()
            if ckpt_path is None:
                raise FileNotFoundError(
                    f'`ckpt_path` is "last", and there is no checkpoint in {trainer.run_folder}: give the folder of '
                    "the run (--trainer.default_root_dir), the checkpoint's own path, or no ckpt_path for the start"
                )
        # Set here and not when it is loaded: the data's tokens depend on the date at which the run began.
        self._ckpt_path = super()._parse_ckpt_path(state_fn, ckpt_path, model_provided, model_connected)
        if self._ckpt_path is not None:
            demand_whole(Path(self._ckpt_path))
            _demand_strategy(Path(self._ckpt_path), trainer.strategy)
        return self._ckpt_path

    def resume_start(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        """As Lightning's, but a file that no run of Lightning wrote is named."""
        try:
            super().resume_start(checkpoint_path, weights_only)
        except (KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"The checkpoint {checkpoint_path} was not written by a run, or holds more than plain data, which is "
                f"not loaded ({str(error)[:80]!r}): take a file of a run's checkpoints folder."
            ) from error

    def restore_loops(self) -> None:
        """As Lightning's, with the place in the epoch counted anew where batches are of other sizes than before."""
        data = cast(Any, datamodule_of(self.trainer))
        before = self._loaded_checkpoint.get(type(data).__qualname__, {}).get("settings")
        if before is not None and self.trainer.state.fn == TrainerFn.FITTING:
            progress = self._loaded_checkpoint["loops"]["fit_loop"]
            count_anew(progress, before, data.stream.settings, data.micro_batches_per_epoch)
        super().restore_loops()


def checkpoint_folders(trainer: Trainer) -> set[Path]:
    """Where the checkpoint callbacks write."""
    folders = {getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks}
    return {Path(folder).absolute() for folder in folders if folder}


def last_checkpoint(folders: Iterable[Path], to_resume: bool = True) -> Path | None:
    """The checkpoint of the latest optimizer step in the folders, by whatever callback and under whatever name.

    A file that cannot be read, such as half a copy, is left out with a warning.

    Args:
        folders: the folders to search, without their subfolders; they need not exist.
        to_resume: leaves out files that hold only weights.
    """
    paths: dict[Path, Path] = {}  # by what they point at: a link to a file is the same checkpoint
    for folder in folders:
        paths.update((path.resolve(), path) for path in sorted(folder.glob("*.ckpt")) if path.exists())
    steps = {path: _saved_step(path, to_resume) for path in paths.values()}
    readable = [path for path, step in steps.items() if step is not None]
    readable.sort(key=lambda path: (steps[path], path.stat().st_mtime), reverse=True)
    return next((path for path in readable if not _is_damaged(path)), None)


def demand_whole(path: Path) -> None:
    """Refuses a path that is no checkpoint or only a part of one. Lightning itself refuses a path that does not exist.

    Raises:
        ValueError: a file is cut short.
        IsADirectoryError: a folder is no checkpoint.
    """
    if path.is_dir() and not is_sharded(path):
        raise IsADirectoryError(
            f"The checkpoint {path} is a folder: give a file, such as {path / 'checkpoints' / 'last.ckpt'}, or the "
            'folder as trainer.default_root_dir with "last" as ckpt_path.'
        )
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError(
            f'The checkpoint {path} is broken or cut short: take another one. With "last" as ckpt_path the newest '
            "that can be read is taken."
        )


def _demand_strategy(path: Path, strategy: Strategy) -> None:
    """Refuses a folder where no strategy would read it."""
    if is_sharded(path) and not isinstance(strategy, ShardedStrategy):
        raise ValueError(
            f"The checkpoint {path} was written with each device's part in its own file: resume it with "
            f"--trainer.strategy {NAME}. `lit-align export` makes a model of it without that."
        )


def _is_damaged(path: Path) -> bool:
    """Whether a part of a file is not as it was written; its name is said then. A folder is not looked into."""
    if path.is_dir():
        return False
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except Exception as error:
        part = str(error)
    if part is not None:
        rank_zero_warn(f"The checkpoint {path} is damaged ({part}): the one before it is taken, if there is one.")
    return part is not None


def _saved_step(path: Path, to_resume: bool) -> int | None:
    """The step of a checkpoint; None if it cannot be used."""
    try:
        checkpoint = read_values(path)
        return None if to_resume and "optimizer_states" not in checkpoint else int(checkpoint["global_step"])
    except Exception as error:
        rank_zero_warn(f"The checkpoint {path} cannot be read and is left out: {error}")
        return None
