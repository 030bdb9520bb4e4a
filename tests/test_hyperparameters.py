"""The configuration reaches every logger, in plain types and without keys."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_align.boundary import BoundaryCallback
from lit_align.data import AlignmentDataModule
from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.reward import RewardDataModule, RewardModule
from lit_align.trainer import AlignmentTrainer
from lit_align.training.hyperparameters import plain, set_hyperparameters, without_secrets
from lit_align.training.module import AlignmentModule
from tests.helpers.data_fakes import FakeSampler, LastDigit, pair_rows, write

pytestmark = pytest.mark.filterwarnings("ignore")


def run(module: Any, data: Any, folder: Path, *callbacks: Any) -> list[dict[str, Any]]:
    """What the run's loggers have kept of its configuration."""
    trainer = AlignmentTrainer(
        max_steps=1, default_root_dir=str(folder), accelerator="cpu", enable_progress_bar=False,
        enable_checkpointing=False, callbacks=list(callbacks), limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return [yaml.safe_load((Path(logger.log_dir or "") / "hparams.yaml").read_text()) for logger in trainer.loggers]


def test_a_run_written_in_python_is_described(tiny_model: Path, tmp_path: Path) -> None:
    policy = PolicySpec(str(tiny_model), lora=LoraSpec(r=2))
    module = AlignmentModule(policy, DPO(beta=0.3), optimizer=lambda params: torch.optim.SGD(params, lr=0.5))
    train = write(tmp_path / "train.jsonl", pair_rows(8))
    data = AlignmentDataModule(train, batch_size=3, sampler=FakeSampler(2), judge=LastDigit("!"), val_fraction=0.3)
    csv, tensorboard = run(module, data, tmp_path / "run", BoundaryCallback(every_n_steps=7, max_prompts=2))
    assert csv == tensorboard
    lora = {"r": 2, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear", "target_parameters": None}
    lora |= {"dora": False, "rslora": False, "modules_to_save": None, "init": "default"}
    assert csv["model"]["policy"]["lora"] == lora
    assert csv["model"]["loss"]["init_args"]["beta"] == 0.3 and csv["model"]["groups"][0]["lr"] == 0.5
    assert csv["data"]["init_args"]["batch_size"] == 3 and csv["data"]["init_args"]["train"] == train
    assert csv["data"]["init_args"]["sampler"]["init_args"]["num_candidates"] == 2
    assert csv["data"]["init_args"]["judge"]["init_args"] == {"abstain": "!"}
    assert csv["trainer"]["max_steps"] == 1 and csv["trainer"]["strategy"] == "SingleDeviceStrategy"
    boundary = next(c for c in csv["callbacks"] if c["class_path"].endswith("BoundaryCallback"))
    assert boundary["init_args"]["every_n_steps"] == 7


def test_a_reward_models_run_is_described(tiny_model: Path, tmp_path: Path) -> None:
    module = RewardModule(PolicySpec(str(tiny_model)), centring=0.01)
    data = RewardDataModule(write(tmp_path / "train.jsonl", pair_rows(4)), batch_size=2)
    csv, _ = run(module, data, tmp_path / "run")
    assert csv["model"]["centring"] == 0.01 and csv["model"]["base"]["model"] == str(tiny_model)
    assert csv["model"]["optimizer"] == "AdamW"


def test_what_was_set_wins_and_stays_out_of_checkpoints(tiny_model: Path, tmp_path: Path) -> None:
    module = AlignmentModule(PolicySpec(str(tiny_model), lora=LoraSpec(r=2)), DPO())
    set_hyperparameters(module, {"data": {"judge": {"api_key": "sk-1", "api_key_env": "MY_KEY"}}})
    trainer = AlignmentTrainer(
        max_steps=1, default_root_dir=str(tmp_path), accelerator="cpu", logger=CSVLogger(str(tmp_path)),
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, AlignmentDataModule(write(tmp_path / "train.jsonl", pair_rows(4))))
    (kept,) = tmp_path.glob("lightning_logs/*/hparams.yaml")
    assert yaml.safe_load(kept.read_text()) == {"data": {"judge": {"api_key": "***", "api_key_env": "MY_KEY"}}}
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert "hyper_parameters" not in checkpoint


def test_objects_become_plain_types() -> None:
    values = {"path": Path("a/b"), "every": timedelta(minutes=5), "rule": write, "pair": (1, 2.5), "layer": nn.ReLU()}
    assert plain(values) == {
        "path": "a/b",
        "every": "0:05:00",
        "rule": "tests.helpers.data_fakes.write",
        "pair": [1, 2.5],
        "layer": {"class_path": "torch.nn.modules.activation.ReLU", "init_args": {"inplace": False}},
    }


def test_keys_tokens_and_logins_are_hidden() -> None:
    config = {
        "judge": {"api_key": "sk-1", "api_key_env": "OPENAI_API_KEY", "base_url": "https://me:pw@host:1/v1"},
        "logger": [{"init_args": {"api_token": "t", "token": "u", "password": None, "project": "p"}}],
        "max_prompt_tokens": 512,
        "pad_token": "<pad>",
    }
    assert without_secrets(config) == {
        "judge": {"api_key": "***", "api_key_env": "OPENAI_API_KEY", "base_url": "https://***@host:1/v1"},
        "logger": [{"init_args": {"api_token": "***", "token": "***", "password": None, "project": "p"}}],
        "max_prompt_tokens": 512,
        "pad_token": "<pad>",
    }
