"""A look ahead: trains the policy for a few steps on either source, and takes everything back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer

from lit_align.seeding import derive_seed
from lit_align.training.float32_copies import copies_of, over_float32, take_gradients

Weights = list[Tensor]


class LookAhead:
    """Trains from the current state of a run, any number of times; :func:`looking_ahead` makes one.

    Args:
        trainer: the run's Trainer, with its data module.
        module: the alignment module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer = trainer
        self._module = cast(Any, module)
        self._data = cast(Any, trainer).datamodule
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._weights = self._copy_weights()
        self._loss = deepcopy(self._module.loss.state_dict())
        self._data_before = self._data.state_dict()

    def train(self, share: float, steps: int) -> Weights:
        """Trains for some optimizer steps from the run's current state, and returns the trained weights.

        Optimizer, gradient clipping and accumulation are the run's; its learning rate stays as it is now.

        Args:
            share: share of on-policy pairs, in [0, 1].
            steps: optimizer steps.
        """
        self.take_back()
        self._data.set_on_policy_share(share)
        if share > 0 and self._data_before["on_policy_share"] == 0:
            self._data.request_round()  # as at a switch
        optimizer = self._copy_optimizer()
        with self._data.run.bar(steps, f"look ahead (on-policy share {share:g})", " steps") as bar:
            for step in range(steps):
                torch.manual_seed(derive_seed(self._data.seed, "look ahead", self._trainer.global_rank, step))
                self._step(optimizer)
                bar.update()
        return self._copy_weights()

    def use(self, weights: Weights) -> None:
        """Gives the policy weights that :meth:`train` returned."""
        with torch.no_grad():
            for parameter, value in zip(self._trained, weights, strict=True):
                parameter.copy_(value)

    def take_back(self) -> None:
        """Restores the weights, the state of the loss, and the data."""
        self.use(self._weights)
        self._module.loss.load_state_dict(self._loss)
        self._data.go_back(self._data_before)
        for parameter in self._trained:
            parameter.grad = None  # between two optimizer steps there is none to keep

    def _copy_optimizer(self) -> Optimizer:
        """A copy of the run's optimizer, whose steps do not change the run's."""
        whole = copies_of(self._trainer.optimizers[0]) if self._trainer.optimizers else {}
        optimizer = over_float32(self._module.make_optimizer, self._trained, whole)
        if self._trainer.optimizers:  # `lit-align measure` trains nothing and has none
            optimizer.load_state_dict(deepcopy(self._trainer.optimizers[0].state_dict()))
        return optimizer

    def _step(self, optimizer: Optimizer) -> None:
        trainer = self._trainer
        accumulate = self._trainer.accumulate_grad_batches
        optimizer.zero_grad()
        for _ in range(accumulate):
            batch = trainer.strategy.batch_to_device(self._data.next_batch())
            with trainer.precision_plugin.train_step_context():
                losses = self._module.compute_loss(batch)[1].losses
            self._module.backward(losses.mean() / accumulate)
        if trainer.world_size > 1:
            for parameter in self._trained:
                if parameter.grad is not None:
                    parameter.grad = cast(Tensor, trainer.strategy.reduce(parameter.grad, reduce_op="mean"))
        take_gradients(optimizer)
        self._module.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        optimizer.step()

    def _copy_weights(self) -> Weights:
        return [parameter.detach().clone() for parameter in self._trained]


@contextmanager
def looking_ahead(trainer: Trainer, module: LightningModule) -> Iterator[LookAhead]:
    """Gives a :class:`LookAhead`, and restores the run at the end of the block, random state included.

    Args:
        trainer: a Trainer between two optimizer steps of a fit, or set up for `lit-align measure`.
        module: its alignment module.

    Raises:
        ValueError: the strategy keeps a part of the weights elsewhere, or the precision scales gradients.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            f"a look ahead trains copies of whole weights, on one device or under DDP; got "
            f"{type(trainer.strategy).__name__}: measure with BoundaryCallback there"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError("a look ahead does not scale gradients as precision 16-mixed does: take bf16-mixed")
    with isolate_rng():
        ahead = LookAhead(trainer, module)
        try:
            yield ahead
        finally:
            ahead.take_back()
