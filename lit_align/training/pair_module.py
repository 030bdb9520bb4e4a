"""The base of the modules that train on preference pairs."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_align.batch import PairBatch
from lit_align.policy.base_record import KEY as BASE_KEY
from lit_align.policy.base_record import base_record, demand_same_base
from lit_align.policy.cpu.host_memory import keep_freed_memory
from lit_align.policy.precision import say_float32_products, say_slow_bfloat16
from lit_align.policy.sharding import shard_model
from lit_align.policy.spec import PolicySpec
from lit_align.ranks import one_at_a_time
from lit_align.run_parts import accumulates_more, trainer_of
from lit_align.seeding import derive_seed
from lit_align.training.float32_copies import over_float32, say_copies, take_gradients, whole_weights
from lit_align.training.hyperparameters import describe_run
from lit_align.training.lr_schedulers import WarmupSchedule, steps_of_fit
from lit_align.training.optimizer_settings import KEY as SETTINGS_KEY
from lit_align.training.optimizer_settings import OptimizerSettings, Scheduler, carry_on
from lit_align.training.pair_means import PairMeans
from lit_align.training.sharded import ShardedStrategy, demand_shardable
from lit_align.training.step_watch import OnNonFinite, StepWatch, demand_finite
from lit_align.training.strategies import check_strategy

ON_BAR = ("loss", "rewards/accuracies", "rewards/margins")
PLATEAU_METRIC = "val/loss"
SKIPPED_KEY = "steps_skipped"


class PairModule(LightningModule):
    """A LightningModule that trains on preference pairs; subclasses compute the loss.

    It has the optimizer and its scheduler, counter-based random seeds, and checkpoints that hold only the trained
    weights. Its metrics are means over pairs, of an optimizer step or of all held-out pairs, over all ranks.

    Args:
        optimizer: a class and its arguments, called with the trainable parameters.
        lr_scheduler: a class and its arguments, called with the optimizer; stepped after every optimizer step.
            `WarmupSchedule` has transformers' schedules by name. A `ReduceLROnPlateau` watches `val/loss` and is
            stepped after validation.
        on_nonfinite: what to do at a step whose loss or gradients are NaN or infinite: "stop" ends the fit before the
            step and names its pairs, "skip" leaves the step out and counts it.
    """

    spec: PolicySpec

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold the trained weights, not the frozen base
        self._make_optimizer = optimizer
        self._make_scheduler = lr_scheduler
        self._step_means = PairMeans()
        self._held_out_means = PairMeans()
        self.step_watch = StepWatch(on_nonfinite)
        self._log_hyperparams = True  # Lightning then gives `hparams_initial` to the loggers
        self._settings: OptimizerSettings | None = None
        self._resumed: dict[str, Any] | None = None  # the checkpoint, until the optimizer is made

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer.strategy)
        if isinstance(self.trainer.strategy, ShardedStrategy):
            demand_shardable(self.spec)

    def load_and_spread(self, load: Callable[[], nn.Module]) -> nn.Module:
        """Loads a model and spreads it over the devices if the run's strategy does so."""
        if self.device_mesh is None:
            return load()
        with one_at_a_time():  # each process has the whole model in the host's memory until it is spread
            model = load()
            shard_model(model, self.device_mesh["data_parallel"])
        return model

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._make_over_float32()
        self._settings = OptimizerSettings.of(optimizer)
        scheduler = self._scheduler_of(optimizer)
        if scheduler is not None:
            self._settings = self._settings.with_scheduler(scheduler)
        if self._resumed is not None:
            carry_on(self._resumed, self._settings, optimizer, scheduler)
            self._resumed = None
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, ReduceLROnPlateau):  # see `_step_plateau`
            never: Any = {"scheduler": scheduler, "monitor": PLATEAU_METRIC, "frequency": sys.maxsize}
            return {"optimizer": optimizer, "lr_scheduler": never}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _make_over_float32(self) -> Optimizer:
        """Makes the optimizer, over float32 copies of weights in half precision; a resume takes the checkpoint's."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        saved = {} if self._resumed is None else self._resumed["state_dict"]
        whole = {parameter: saved[name] for name, parameter in trained.items() if name in saved}
        optimizer = over_float32(self.make_optimizer, trained.values(), whole)
        say_copies(optimizer)
        return optimizer

    def _scheduler_of(self, optimizer: Optimizer) -> Scheduler | None:
        if self._make_scheduler is None:
            return None
        scheduler = self._make_scheduler(optimizer)
        if isinstance(scheduler, WarmupSchedule) and scheduler.num_training_steps is None:
            scheduler.fit_into(steps_of_fit(self.trainer))
        return scheduler

    def _step_plateau(self) -> None:
        """Steps a `ReduceLROnPlateau`, before a checkpoint is written; Lightning does so later, and not mid-epoch."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(self.trainer.callback_metrics[PLATEAU_METRIC])

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The configured optimizer over these parameters; see :mod:`lit_align.training.float32_copies`."""
        return self._make_optimizer(parameters)

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.trainer.precision == "32-true":
            say_float32_products(self.device.type, next(self.parameters()).dtype)
            say_slow_bfloat16(self.device.type, next(self.parameters()).dtype)

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Seeds torch from (run seed, rank, micro-batch): dropout then does not depend on what ran before."""
        data = getattr(self.trainer, "datamodule", None)
        position = getattr(data, "delivered", self.trainer.fit_loop.total_batch_idx)
        torch.manual_seed(derive_seed(getattr(data, "seed", 0), "train", self.global_rank, position))
        self.step_watch.begin(self.trained_buffers())

    def on_after_backward(self) -> None:
        """Adds up gradients in float32; under DDP after the last micro-batch, when they are reduced."""
        reduced = self.trainer.world_size == 1 or self.device_mesh is not None
        if reduced or not accumulates_more(self.trainer):
            take_gradients(self.trainer.optimizers[0])

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Looks whether the step is finite."""
        self.step_watch.check(self, optimizer, self._name_pair)

    def trained_buffers(self) -> Iterable[Tensor]:
        """The buffers that training changes, beside the weights."""
        return ()

    def _name_pair(self, batch: PairBatch, place: int) -> str:
        """The end of a pair's prompt and the beginning of its chosen answer."""
        tokenizer: Any = self.tokenizer
        prompt, chosen = (
            " ".join(tokenizer.decode(side.ids[place][side.mask[place]], skip_special_tokens=True).split())
            for side in (batch.prompt, batch.chosen)
        )
        return f"{prompt[-80:]!r} with the chosen answer {chosen[:40]!r}"

    # ------------------------------------------------------------------ what is logged

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The module's arguments by name, without the optimizer and the scheduler."""

    @property
    def hparams_initial(self) -> AttributeDict:
        """The hyper-parameters for loggers: those of `save_hyperparameters`, else read from the run's objects."""
        optimizer = {} if self._settings is None else self._settings.as_state()
        return super().hparams_initial or AttributeDict(describe_run(self.trainer, {**self.settings(), **optimizer}))

    @abstractmethod
    def evaluate_pairs(self, batch: PairBatch) -> dict[str, Tensor]:
        """The logged values of held-out pairs by name, each [B]; `loss` is among them."""

    @abstractmethod
    def rewards(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """The rewards of the chosen and of the rejected completions, each [B]."""

    def on_train_start(self) -> None:
        self._step_means = PairMeans()

    def log_training(
        self, batch: PairBatch, values: Mapping[str, Tensor], of_on_policy: Mapping[str, Tensor] | None = None
    ) -> None:
        """Logs the means over the pairs of an optimizer step and its learning rate, at its last micro-batch.

        Args:
            batch: the micro-batch.
            values: [B] by name, the same names in each micro-batch.
            of_on_policy: [B] values whose means are over the on-policy pairs; NaN where there are none.
        """
        self.step_watch.add(batch, values["loss"])
        self._step_means.add(values, batch.counted)
        self._step_means.add(of_on_policy or {}, batch.on_policy)
        if not accumulates_more(self.trainer):
            self._log_means("", self._step_means)
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._held_out_means.add(self.evaluate_pairs(batch), batch.counted)

    test_step = validation_step

    def predict_step(self, batch: PairBatch, batch_idx: int) -> dict[str, list[float]]:
        """The rewards of each pair: `chosen_rewards`, `rejected_rewards` and `margins`, each [B]."""
        chosen, rejected = (batch.only_counted(reward) for reward in self.rewards(batch))
        return {
            "chosen_rewards": chosen.tolist(),
            "rejected_rewards": rejected.tolist(),
            "margins": (chosen - rejected).tolist(),
        }

    def end_evaluation(self, prefix: str) -> None:
        """Called after the last held-out pair, to log what was measured under `prefix`."""
        self._log_means(prefix, self._held_out_means)

    def on_validation_epoch_start(self) -> None:
        """Begins a validation or a test."""
        self._held_out_means = PairMeans()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self.end_evaluation("val/")
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._step_plateau()

    def on_test_epoch_end(self) -> None:
        self.end_evaluation("test/")

    def _log_means(self, prefix: str, pair_means: PairMeans) -> None:
        """Logs means that are the same on all ranks; without `sync_dist` Lightning would warn at an epoch's end."""
        means = pair_means.take(lambda sums: self.trainer.strategy.reduce(sums, reduce_op="sum"))
        for on_bar in (True, False):
            logged = {prefix + name: mean for name, mean in means.items() if (name in ON_BAR) == on_bar}
            self.log_dict(logged, prog_bar=on_bar, sync_dist=bool(prefix), batch_size=1)

    # ------------------------------------------------------------------ checkpoints
    def saved_names(self) -> set[str]:
        """Names of the weights in a checkpoint: the trained ones of the loaded model."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the trained weights, never the frozen base."""
        names = self.saved_names()
        weights = {name: value for name, value in checkpoint["state_dict"].items() if name in names}
        by_parameter = {parameter: name for name, parameter in self.named_parameters()}
        for optimizer in self.trainer.optimizers if trainer_of(self) is not None else ():
            weights = whole_weights(optimizer, by_parameter, weights)
        checkpoint["state_dict"] = weights
        demand_finite(checkpoint["state_dict"], self.global_step)
        if self.global_rank == 0:  # whose file it is
            checkpoint[BASE_KEY] = base_record(self.spec)
        checkpoint[SKIPPED_KEY] = self.step_watch.skipped
        if self._settings is not None:
            checkpoint[SETTINGS_KEY] = self._settings.as_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Demands exactly the weights that this configuration trains.

        Raises:
            ValueError: the checkpoint holds others, or fewer, or of another shape, or was made on another base.
        """
        demand_same_base(checkpoint, self.spec)
        self.configure_model()
        names = self.saved_names()  # first: it may load parts that are loaded when first needed
        own = self.state_dict()
        expected = {name: tuple(own[name].shape) for name in names}
        _demand_equal(expected, {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()})
        self.step_watch.skipped = checkpoint.get(SKIPPED_KEY, 0)
        if trainer_of(self) is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._resumed = checkpoint


def pair_values(losses: Tensor, chosen: Tensor, rejected: Tensor, right: Tensor) -> dict[str, Tensor]:
    """The values that are logged of pairs whatever the model, by name.

    Args:
        losses: [B].
        chosen: [B] rewards of the chosen completions.
        rejected: [B] rewards of the rejected completions.
        right: [B] whether the chosen completion is preferred, in [0, 1].
    """
    return {
        "loss": losses,
        "rewards/accuracies": right,
        "rewards/margins": chosen - rejected,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
    }


def _demand_equal(expected: dict[str, tuple[int, ...]], saved: dict[str, tuple[int, ...]]) -> None:
    missing = sorted(expected.keys() - saved.keys())
    unknown = sorted(saved.keys() - expected.keys())
    reshaped = sorted(name for name in expected.keys() & saved.keys() if expected[name] != saved[name])
    if missing or unknown or reshaped:
        first = (missing or unknown or reshaped)[0]
        raise ValueError(
            f"The checkpoint does not fit this configuration: of {len(expected)} weights to restore it lacks "
            f"{len(missing)}, has {len(unknown)} others and {len(reshaped)} of another shape (such as {first!r}: "
            f"expected {expected.get(first, 'none')}, found {saved.get(first, 'none')}). "
            "Continue with the model settings that wrote it."
        )
