"""A checkpoint knows the base that it was made on, and is restored on no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lit_align import DPO
from lit_align.policy import LoraSpec, PolicySpec, identity
from lit_align.training.module import AlignmentModule
from tests.helpers.modules import loader, trainer
from tests.helpers.tiny import save_adapter, save_tiny_model


def module(model: Path, **spec: object) -> AlignmentModule:
    options = {"lora": LoraSpec(r=2)} if "adapter" not in spec else {}
    return AlignmentModule(PolicySpec(str(model), **{**options, **spec}), DPO())  # type: ignore[arg-type]


@pytest.fixture
def checkpoint(tiny_model: Path, tmp_path: Path) -> Path:
    return saved(module(tiny_model), tmp_path)


def saved(trained: AlignmentModule, folder: Path) -> Path:
    task = trainer(folder, max_steps=1)
    task.fit(trained, loader(1))
    task.save_checkpoint(folder / "one.ckpt")
    return folder / "one.ckpt"


def test_the_same_files_elsewhere_are_the_same_base(checkpoint: Path, tiny_model: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    task = trainer(tmp_path, max_steps=2)
    task.fit(module(moved), loader(1), ckpt_path=checkpoint, weights_only=True)
    assert task.global_step == 2
    assert torch.load(checkpoint, weights_only=True)["base"]["name"] == str(tiny_model)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_another_base_of_the_same_shape_is_refused_by_name(command: str, checkpoint: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=7)
    task = trainer(tmp_path, max_steps=2)
    with pytest.raises(ValueError, match=r"made on '.*tiny-llama' \(model \w{8}\).*base is '.*other' \(model \w{8}\)"):
        if command == "fit":
            task.fit(module(other), loader(1), ckpt_path=checkpoint)
        else:
            task.validate(module(other), loader(1), ckpt_path=checkpoint)


def test_another_adapter_to_go_on_from_is_another_base(tiny_model: Path, tmp_path: Path) -> None:
    first, second = (save_adapter(tiny_model, tmp_path / name, r=rank) for name, rank in (("a", 4), ("b", 2)))
    path = saved(module(tiny_model, adapter=str(first)), tmp_path)
    with pytest.raises(ValueError, match=r"with the adapter '.*/a' .*with the adapter '.*/b'"):
        trainer(tmp_path).fit(module(tiny_model, adapter=str(second)), loader(1), ckpt_path=path)


def test_a_base_loaded_in_another_way_is_said(
    checkpoint: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = trainer(tmp_path, max_steps=2)
    task.fit(module(tiny_model, dtype="bfloat16"), loader(1), ckpt_path=checkpoint, weights_only=True)
    assert "loaded in another way than before: dtype float32 -> bfloat16." in capsys.readouterr().out


def test_a_checkpoint_that_does_not_tell_is_taken_at_its_word(
    checkpoint: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = torch.load(checkpoint, weights_only=True)
    del older["base"]
    torch.save(older, checkpoint)
    trainer(tmp_path, max_steps=2).fit(module(tiny_model), loader(1), ckpt_path=checkpoint, weights_only=True)
    assert "base cannot be told: it is taken to be '" in capsys.readouterr().out


def test_the_files_are_read_once_until_they_change(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    known = identity.model_identity(PolicySpec(str(folder)))
    before = identity._digest.cache_info().misses
    assert identity.model_identity(PolicySpec(str(folder))) == known
    assert identity._digest.cache_info().misses == before
    save_tiny_model(folder, seed=3)
    assert identity.model_identity(PolicySpec(str(folder))) != known
