"""The private names of other libraries that lit-align uses: an upgrade that takes one away fails here, in one place."""

from __future__ import annotations

import ast
import inspect
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from peft import LoraConfig
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from transformers import GenerationConfig, LlamaForCausalLM

from tests.helpers.tiny import tiny_llama_config

PACKAGE = Path(__file__).parents[1] / "lit_align"


def make_trainer() -> Trainer:
    return Trainer(barebones=True, accelerator="cpu")


def make_module() -> LightningModule:
    module = LightningModule()
    module.save_hyperparameters({"lr": 1.0})
    return module


def make_llama() -> LlamaForCausalLM:
    model = LlamaForCausalLM(tiny_llama_config())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def make_schedule() -> ExponentialLR:
    return ExponentialLR(SGD([nn.Parameter()], 1.0), 0.9)


PRIVATE: list[tuple[Callable[[], Any], list[str]]] = [
    (make_trainer, ["_checkpoint_connector", "_logger_connector", "_run_stage", "_signal_connector"]),
    (lambda: make_trainer()._signal_connector, [
        "_get_current_signal_handlers", "_original_handlers", "_register_signal",
    ]),
    (lambda: make_trainer().fit_loop, ["_can_stop_early", "_data_fetcher"]),
    (lambda: make_trainer().fit_loop.epoch_loop, ["_should_accumulate", "_should_check_val_fx"]),
    (lambda: _CheckpointConnector(make_trainer()), ["_ckpt_path", "_loaded_checkpoint", "_parse_ckpt_path"]),
    (lambda: sys, ["_current_frames"]),
    (lambda: os, ["_exit"]),
    (make_module, ["_hparams_initial", "_log_hyperparams", "_trainer"]),
    (DDPStrategy, ["_start_method", "_timeout"]),
    (lambda: ModelCheckpoint(every_n_train_steps=1), [
        "_every_n_train_steps", "_last_checkpoint_saved", "_last_global_step_saved", "_last_time_checked",
        "_monitor_candidates", "_save_checkpoint", "_save_last_checkpoint", "_save_topk_checkpoint",
        "_should_skip_saving_checkpoint", "_train_time_interval",
    ]),
    (TQDMProgressBar, ["_should_update", "_train_progress_bar"]),
    (lambda: LightningCLI, ["_get", "_instantiate_trainer", "_parse_ckpt_path", "_run_subcommand"]),
    (lambda: make_llama().config, ["_attn_implementation", "_experts_implementation"]),
    (make_llama, ["_can_set_attn_implementation", "_no_split_modules"]),
    (lambda: make_llama().model.layers[0], ["_gradient_checkpointing_func"]),
    (LoraConfig, ["_register_custom_module"]),
    (GenerationConfig, ["_from_model_config"]),
    (ArgumentParser, ["_actions"]),
    (lambda: nn.Linear(1, 1), ["_parameters"]),
    (lambda: nn.Linear(1, 1).weight, ["_version"]),
    (make_schedule, ["_last_lr", "_step_count"]),
]  # fmt: skip
"""Objects, and the private names that lit-align reads, sets or overrides on them."""
BY_IMPORT = {"plan/", "cli/keys.py"}
"""Rooms that take private names of torch and jsonargparse, which their own tests need at every step."""
ELSEWHERE = {"_subcommand_parsers", "_replace", "_apply_liger_kernel_to_instance"}
"""Of objects that only a run has (the last test here), of named tuples, for whom it is public, and of a package that
only a GPU needs (tests/test_policy_kernels.py runs it where it is installed)."""


@pytest.mark.parametrize(("make", "names"), PRIVATE, ids=[names[0] for _, names in PRIVATE])
def test_the_private_names_that_are_used_are_there(make: Callable[[], Any], names: list[str]) -> None:
    owner = make()
    missing = [name for name in names if not hasattr(owner, name)]
    assert not missing, f"{owner!r:.200} has no {missing}: see lit_align/run_parts.py and lit_align/policy/internals.py"


def private_attributes(tree: ast.AST) -> Iterator[str]:
    """Private names that are read, set or deleted on an object, also through `getattr` and its like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = str(getattr(node.args[1], "value", ""))
        else:
            continue
        if name.startswith("_") and not name.startswith("__"):
            yield name


def own_names(tree: ast.AST) -> Iterator[str]:
    """Names that are defined here: functions, classes, variables, attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def test_each_private_name_of_another_library_is_listed() -> None:
    listed = {name for _, names in PRIVATE for name in names} | ELSEWHERE
    paths = {path: path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))}
    trees = {place: ast.parse(path.read_text()) for path, place in paths.items()}
    own = {name for tree in trees.values() for name in own_names(tree)}
    unlisted = {
        f"{place}: {name}"
        for place, tree in trees.items()
        for name in private_attributes(tree)
        if name not in own | listed and not place.startswith(tuple(BY_IMPORT))
    }
    assert not unlisted, "put each behind a function that says why, and into the list above"


def test_the_command_lines_parsers_are_kept_under_their_name() -> None:
    assert "self._subcommand_parsers" in inspect.getsource(LightningCLI)
