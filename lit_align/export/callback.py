"""Leaves the trained model in the run folder, at the end of every fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from torch import nn

from lit_align import run_folder
from lit_align.console import note
from lit_align.export.card import CardFacts, write_card
from lit_align.export.folder import write_model
from lit_align.policy.sharding import is_sharded, whole_on_first
from lit_align.report.summary import RunSummary
from lit_align.run_parts import find_callback, is_trial
from lit_align.trained.policy import WEIGHTS
from lit_align.training.interruption import interruptions_of, weights_are_whole
from lit_align.training.module import AlignmentModule
from lit_align.training.sharded_files import read_checkpoint
from lit_align.training.step_watch import demand_finite


class SaveModel(Callback):
    """Writes the trained policy into `model/` of the run folder, for transformers, peft and vLLM to load.

    At the end of a fit and after Ctrl-C or an error; the folder holds the adapter as peft writes it, or after full
    fine-tuning all weights as safetensors, the tokenizer with its chat template, generation settings and a model card.
    Where a checkpoint callback watches a metric, `best_model/` has the weights that were best. Both are written whole
    or not at all and replace those of the same run. Every run that keeps checkpoints has this callback.

    Args:
        at_end: writes `model/`.
        best: writes `best_model/`.
    """

    def __init__(self, at_end: bool = True, best: bool = True) -> None:
        self.at_end = at_end
        self.best = best

    @property
    def state_key(self) -> str:
        """Fixed, so that a subclass keeps it."""
        return "SaveModel"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After all that others do at the end of training, and before the summary."""
        if not _concerned(trainer, pl_module):
            return
        with _weights_of_first(pl_module):
            if self.at_end:
                self._try(trainer, pl_module, run_folder.MODEL, f"the end of the run, step {trainer.global_step}")
            self._keep_best(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the weights of the last whole step."""
        if not _concerned(trainer, pl_module) or not weights_are_whole(trainer) or _is_alone(trainer, pl_module):
            return
        with _weights_of_first(pl_module):
            if self.at_end:
                moment = f"step {trainer.global_step}, at which the run was stopped"
                if self._try(trainer, pl_module, run_folder.MODEL, moment):
                    note(f"The model as of step {trainer.global_step} is in {_root(trainer) / run_folder.MODEL}")
            self._keep_best(trainer, pl_module)

    def _keep_best(self, trainer: Trainer, module: Any) -> None:
        callback = _watcher(trainer)
        if not self.best or callback is None or not trainer.is_global_zero:
            return
        checkpoint = read_checkpoint(Path(callback.best_model_path))
        score = "" if callback.best_model_score is None else f" {float(callback.best_model_score):.4g}"
        moment = f"step {checkpoint['global_step']}, the best by {callback.monitor}{score}"
        with _with_weights(module.policy, checkpoint["state_dict"]):
            self._try(trainer, module, run_folder.BEST_MODEL, moment)

    def _try(self, trainer: Trainer, module: Any, name: str, moment: str) -> bool:
        """Writes a folder; an error is only said, since it must not end a run that has done its work."""
        if not trainer.is_global_zero:
            return False
        target = _root(trainer) / name
        summary = (find_callback(trainer, RunSummary) or RunSummary()).collect(trainer, "finished")
        facts = CardFacts(_root(trainer).absolute().name, module.spec, module.hparams_initial, summary, moment)
        try:
            trained = {name: weight for name, weight in module.policy.named_parameters() if weight.requires_grad}
            demand_finite(trained, trainer.global_step)
            write_model(target, module.policy, module.spec, module.tokenizer, partial(write_card, facts))
        except Exception as error:  # such as a full disk
            note(f"{target} could not be written: {error}\n`lit-align export` makes one of a checkpoint.")
            return False
        return True


def _concerned(trainer: Trainer, module: LightningModule) -> bool:
    of_policy = isinstance(module, AlignmentModule) and module.policy is not None
    return of_policy and trainer.global_step > 0 and not is_trial(trainer)


def _is_alone(trainer: Trainer, module: Any) -> bool:
    """Whether this process may wait in vain for the others' parts of the weights."""
    interruptions = interruptions_of(trainer)
    return is_sharded(module.policy) and not (interruptions is not None and interruptions.stops_together)


def _weights_of_first(module: Any) -> AbstractContextManager[None]:
    return whole_on_first(module.policy, trained_only=isinstance(module.policy, PeftModel))


def _root(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _watcher(trainer: Trainer) -> ModelCheckpoint | None:
    """The first checkpoint callback that has kept a best checkpoint by a metric."""
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or not callback.monitor or not callback.best_model_path:
            continue
        if Path(callback.best_model_path).exists():
            return callback
    return None


@contextmanager
@torch.no_grad()
def _with_weights(policy: nn.Module, saved: Mapping[str, Any]) -> Iterator[None]:
    """Gives a policy the trained weights of a checkpoint, and its own back afterwards."""
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad and WEIGHTS + name in saved}
    own = {name: parameter.to("cpu", copy=True) for name, parameter in trained.items()}
    for name, parameter in trained.items():
        parameter.copy_(saved[WEIGHTS + name])
    try:
        yield
    finally:
        for name, parameter in trained.items():
            parameter.copy_(own[name])
