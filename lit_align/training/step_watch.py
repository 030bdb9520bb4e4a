"""Catches optimizer steps whose loss or gradients are not finite before they reach the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_align.batch import PairBatch
from lit_align.console import note
from lit_align.policy.sharding import own_part, whole
from lit_align.ranks import gather

OnNonFinite = Literal["stop", "skip"]
NamePair = Callable[[PairBatch, int], str]
"""Names a pair for a message, from its batch and its index in it."""
_MOST_NAMED = 4
_SMALLEST_SCALE = 1.0
"""Below this scale the scaler of 16-mixed, which begins at 65,536, has halved the scale for many steps in a row."""


class NonFiniteStep(ArithmeticError):
    """The loss or the gradients of an optimizer step are not finite; it was not taken."""


@dataclass(frozen=True)
class _MicroBatch:
    batch: PairBatch
    losses: Tensor


class StepWatch:
    """Checks an optimizer step's losses and gradients before the optimizer uses them; waits for the device once.

    Args:
        on_nonfinite: "stop" ends the fit with the pairs named; "skip" leaves the step out and counts it.

    Attributes:
        skipped: steps left out so far.
    """

    def __init__(self, on_nonfinite: OnNonFinite) -> None:
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f'expected on_nonfinite to be "stop" or "skip", got {on_nonfinite!r}')
        self.on_nonfinite = on_nonfinite
        self.skipped = 0
        self._micro_batches: list[_MicroBatch] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []  # each with its value before the step

    def begin(self, buffers: Iterable[Tensor]) -> None:
        """At a step's first micro-batch, remembers the buffers, to put them back if the step is left out."""
        if self.on_nonfinite == "skip" and not self._micro_batches:
            self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def add(self, batch: PairBatch, losses: Tensor) -> None:
        """Remembers a micro-batch and its losses, [B]."""
        self._micro_batches.append(_MicroBatch(batch, losses.detach()))

    def check(self, module: LightningModule, optimizer: Optimizer, name_pair: NamePair) -> None:
        """Checks the step right before the optimizer takes it. All ranks come to the same result.

        Args:
            module: the module in training.
            optimizer: holds the gradients.
            name_pair: names the pairs whose loss is not finite.

        Raises:
            NonFiniteStep: the step is not finite, and `on_nonfinite` is "stop" or no later step can be finite.
        """
        micro_batches = self._micro_batches
        self._micro_batches = []
        scaler = getattr(module.trainer.precision_plugin, "scaler", None)
        gradients = [] if scaler is not None else _gradients(optimizer)  # the scaler leaves out such steps by itself
        hopeless = scaler is not None and scaler.get_scale() < _SMALLEST_SCALE
        if _all_finite(gradients, micro_batches, module.trainer) and not hopeless:
            return
        bad_weight = _first_not_finite(module.named_parameters())
        message = _describe_step(micro_batches, module.trainer.global_step, bad_weight, name_pair)
        if self.on_nonfinite == "stop" or hopeless or bad_weight is not None:
            raise NonFiniteStep(f"{message} {_suggest_remedies(module, bad_weight)}")
        self._leave_out(optimizer, message if module.trainer.is_global_zero else None)

    def _leave_out(self, optimizer: Optimizer, message: str | None) -> None:
        if self.skipped == 0 and message is not None:
            note(f"{message} It and others like it are left out (on_nonfinite: skip) and counted in the summary.")
        self.skipped += 1
        optimizer.zero_grad(set_to_none=True)  # without gradients an optimizer does nothing
        for buffer, before in self._buffers:
            buffer.copy_(before)


def demand_finite(weights: Mapping[str, Any], step: int) -> None:
    """Refuses to save weights that are not finite, so that they never replace good ones.

    Raises:
        NonFiniteStep: a weight is not finite.
    """
    bad_weight = _first_not_finite((name, value) for name, value in weights.items() if isinstance(value, Tensor))
    if bad_weight is not None:
        raise NonFiniteStep(
            f"At step {step} the weight {bad_weight!r} is NaN or infinite: no checkpoint of it is written, and the one "
            "before stays. The learning rate may be too high, or the gradients need clipping."
        )


def _all_finite(gradients: list[Tensor], micro_batches: list[_MicroBatch], trainer: Trainer) -> bool:
    values = [micro_batch.losses.sum().float() for micro_batch in micro_batches]
    if gradients:
        values.append(whole(torch.nn.utils.get_total_norm(gradients)).float())
    if not values:
        return True
    bad = (~torch.stack(values).isfinite()).any().float()
    if trainer.world_size > 1:
        bad = trainer.strategy.reduce(bad, reduce_op="sum")
    return not bool(bad)


def _describe_step(micro_batches: list[_MicroBatch], steps: int, bad_weight: str | None, name_pair: NamePair) -> str:
    """Says what is not finite in the step that follows `steps`, and in which pairs. All ranks must call it."""
    ranks = gather(_bad_pairs(micro_batches, name_pair))
    names = [name for bad, _ in ranks for name in bad]
    pairs = sum(count for _, count in ranks)
    if bad_weight is not None:
        since = "from the start" if steps == 0 else "since an earlier step"
        what = f"the weight {bad_weight!r} is NaN or infinite {since}"
    elif names:
        what = f"the loss is NaN or infinite for {len(names)} of its {pairs} pairs: {'; '.join(names[:_MOST_NAMED])}"
    else:
        what = f"gradients are NaN or infinite, though the losses of its {pairs} pairs are not"
    return f"Step {steps + 1} is not finite and was not taken: {what}."


def _suggest_remedies(module: LightningModule, bad_weight: str | None) -> str:
    remedies = ["a lower learning rate", "trainer.gradient_clip_val"]
    if bad_weight is not None and module.trainer.global_step == 0:
        remedies = ["another copy of the model"]
    elif bad_weight is None:
        remedies.append("model.on_nonfinite: skip, which leaves out such steps")
    if str(module.trainer.precision).startswith("16") or any(p.dtype == torch.float16 for p in module.parameters()):
        remedies.insert(0, "bfloat16 or float32 in place of float16")
    return f"What may help: {', or '.join(remedies)}."


def _bad_pairs(micro_batches: list[_MicroBatch], name_pair: NamePair) -> tuple[list[str], int]:
    """Names of this rank's pairs whose loss is not finite, and the number of all its pairs."""
    names: list[str] = []
    for micro_batch in micro_batches:
        places = (~micro_batch.losses.isfinite()).nonzero()[:, 0].tolist()
        names += [name_pair(micro_batch.batch, place) for place in places]
    return names, sum(len(micro_batch.batch) for micro_batch in micro_batches)


def _first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first; of tensors that are spread over devices all of these must ask."""
    floating = {name: tensor.detach() for name, tensor in tensors if tensor.is_floating_point()}
    bad = next((name for name, tensor in floating.items() if not bool(own_part(tensor).isfinite().all())), None)
    spread = any(own_part(tensor) is not tensor for tensor in floating.values())
    return next(filter(None, gather(bad)), None) if spread else bad


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    gradients = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
    return [gradient for gradient in gradients if gradient is not None]
