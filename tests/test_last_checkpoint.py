"""`ckpt_path="last"`: the latest step, whichever callback wrote it and under whatever name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lit_align import AlignmentTrainer
from lit_align.training.checkpoint_paths import last_checkpoint


def save(path: Path, step: int, age: int, **more: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({"global_step": step, "optimizer_states": [], **more}, path)
    os.utime(path, (1000 - age, 1000 - age))
    return path


def test_the_latest_step_counts_then_the_newest_file(tmp_path: Path) -> None:
    assert last_checkpoint([tmp_path, tmp_path / "missing"]) is None
    save(tmp_path / "last.ckpt", step=4, age=0)
    save(tmp_path / "epoch=0-step=6.ckpt", step=6, age=9)
    last = save(tmp_path / "b" / "last-v1.ckpt", step=6, age=5)  # copied here later: the time alone tells nothing
    assert last_checkpoint([tmp_path, tmp_path / "b"]) == last
    assert last_checkpoint([tmp_path]) == tmp_path / "epoch=0-step=6.ckpt"


def test_a_link_is_followed_and_one_to_nothing_is_not(tmp_path: Path) -> None:
    target = save(tmp_path / "step=2.ckpt", step=2, age=0)
    (tmp_path / "last.ckpt").symlink_to(target)
    (tmp_path / "last-v1.ckpt").symlink_to(tmp_path / "gone.ckpt")
    last = last_checkpoint([tmp_path])
    assert last is not None and last.resolve() == target


def test_half_a_file_is_left_out_aloud_and_weights_alone_cannot_be_resumed(tmp_path: Path) -> None:
    whole = save(tmp_path / "step=2.ckpt", step=2, age=5)
    (tmp_path / "last.ckpt").write_bytes(whole.read_bytes()[:100])
    torch.save({"global_step": 9}, tmp_path / "weights.ckpt")
    with pytest.warns(UserWarning, match="last.ckpt cannot be read and is left out"):
        assert last_checkpoint([tmp_path]) == whole
    with pytest.warns(UserWarning, match="left out"):
        assert last_checkpoint([tmp_path], to_resume=False) == tmp_path / "weights.ckpt"


def test_a_damaged_file_is_noticed_and_the_one_before_is_taken(tmp_path: Path) -> None:
    whole = save(tmp_path / "last-previous.ckpt", step=2, age=5)
    last = save(tmp_path / "last.ckpt", step=4, age=0, state_dict={"weight": torch.ones(4096)})
    content = bytearray(last.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 512] = bytes(512)  # a page that a power cut kept from the disk
    last.write_bytes(content)
    with pytest.warns(UserWarning, match="last.ckpt is damaged .*the one before it is taken"):
        assert last_checkpoint([tmp_path]) == whole


def trained(folder: Path, steps: int, resume: bool = False, **callback: Any) -> AlignmentTrainer:
    trainer = AlignmentTrainer(
        default_root_dir=str(folder), max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        limit_val_batches=1, callbacks=[ModelCheckpoint(**callback)],
    )  # fmt: skip
    trainer.fit(BoringModel(), datamodule=BoringDataModule(), ckpt_path="last" if resume else None)
    return trainer


@pytest.mark.parametrize(
    "callback",
    [
        {"every_n_train_steps": 2},  # epoch=0-step=4.ckpt
        {"every_n_train_steps": 2, "save_last": True},
        {"every_n_train_steps": 2, "save_last": "link", "save_top_k": -1},
        {"every_n_train_steps": 2, "filename": "mine-{step}"},
    ],
)
def test_a_plain_model_checkpoint_is_found(callback: dict[str, Any], tmp_path: Path) -> None:
    trained(tmp_path, 4, **callback)
    resumed = trained(tmp_path, 6, resume=True, **callback)
    assert resumed.global_step == 6 and not (tmp_path / "previous").exists()
    assert resumed.fit_loop.epoch_loop.batch_progress.total.ready == 6, (
        "the first four steps are counted, not done anew"
    )
    resumed.validate(BoringModel(), datamodule=BoringDataModule(), ckpt_path="last", verbose=False)
    assert torch.load(str(resumed.ckpt_path), weights_only=True)["global_step"] == 6


def test_the_folder_of_another_callback_is_searched_too(tmp_path: Path) -> None:
    own = OnExceptionCheckpoint(tmp_path / "crash")
    saved = save(tmp_path / "crash" / "on_exception.ckpt", step=3, age=0)
    trainer = AlignmentTrainer(default_root_dir=str(tmp_path), accelerator="cpu", callbacks=[own], logger=False)
    assert trainer.last_checkpoint(to_resume=True) == saved


def test_a_folder_or_half_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.ckpt", step=2, age=0)
    (tmp_path / "half.ckpt").write_bytes(whole.read_bytes()[:100])
    trainer = AlignmentTrainer(default_root_dir=str(tmp_path / "run"), accelerator="cpu", logger=False)
    with pytest.raises(ValueError, match="half.ckpt is broken or cut short"):
        trainer.fit(BoringModel(), datamodule=BoringDataModule(), ckpt_path=tmp_path / "half.ckpt")
    with pytest.raises(IsADirectoryError, match="is a folder: give a file, such as .*checkpoints/last.ckpt"):
        trainer.validate(BoringModel(), datamodule=BoringDataModule(), ckpt_path=tmp_path)


def test_last_without_a_checkpoint_trains_afresh_and_validates_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trained(tmp_path / "run", 2, resume=True)
    assert trainer.global_step == 2 and "There is no checkpoint in" in capsys.readouterr().out
    empty = AlignmentTrainer(default_root_dir=str(tmp_path / "other"), accelerator="cpu", logger=False)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in .*other"):
        empty.validate(BoringModel(), datamodule=BoringDataModule(), ckpt_path="last")
