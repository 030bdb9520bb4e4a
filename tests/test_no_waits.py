"""A training step asks the device for no number: a GPU would have to finish all its work first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_align.batch import PairBatch, TokenizedPair, collate
from lit_align.losses import DPO, PreferenceLoss, SLiCHF
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.training.module import AlignmentModule
from tests.helpers.modules import adamw, loader_of, trainer
from tests.helpers.row_models import rows

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten.masked_scatter_backward.default,
    aten.unique_consecutive.default, aten._unique2.default, aten.repeat_interleave.Tensor,
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts what reads numbers of the device, or has a shape that depends on them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in WAITS or by_mask:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Watched(AlignmentModule):
    """Watches the forward pass, the loss, what is logged and the backward of each step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waits: list[list[str]] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        with Waits() as waits:
            loss = super().training_step(batch, batch_idx)
        self.waits.append(waits.found)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with Waits() as waits:
            super().backward(loss, *args, **kwargs)
        self.waits[-1] += waits.found


def pairs(seed: int) -> PairBatch:
    parts = [rows(3, 5, 2, seed=seed + side) for side in range(4)]
    sides = [[part.ids[row, :size].numpy() for row, size in enumerate(part.sizes)] for part in parts]
    return collate(
        [TokenizedPair(p, c, r, 0.5, row > 0, t) for row, (p, c, r, t) in enumerate(zip(*sides, strict=True))], 0
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("loss", [DPO(), SLiCHF(target="row")], ids=["dpo", "slic"])
def test_no_step_but_the_first_waits(
    tiny_model: Path, tmp_path: Path, loss: PreferenceLoss, checkpointing: bool
) -> None:
    spec = PolicySpec(str(tiny_model), lora=LoraSpec(r=4), gradient_checkpointing=checkpointing)
    module = Watched(spec, loss, optimizer=adamw)
    trainer(tmp_path, accumulate_grad_batches=2, max_steps=2).fit(module, loader_of([pairs(seed) for seed in range(4)]))
    assert module.waits[1:] == [[], [], []]


def test_parts_of_a_batch_are_laid_out_without_waiting() -> None:
    batch = pairs(0)
    with Waits() as waits:
        part = batch.part(1, 3)
        assert part.longest_row == max(
            map(sum, zip(*(side.sizes for side in (part.prompt, *part.completions)), strict=True))
        )
    assert not waits.found and part.prompt.sizes == (5, 2) and batch.part(0, 3).rows is batch.rows


def test_what_waits_is_seen() -> None:
    numbers = torch.arange(3)
    with Waits() as waits:
        _ = numbers[numbers > 1], numbers.sum().item(), bool((numbers > 0).all()), numbers.nonzero()
    assert len(waits.found) >= 4
