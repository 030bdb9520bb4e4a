"""Counts the bytes that tensors hold, by what they are for, and remembers the most that were held at once."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATIONS = "activations"
ADAPTERS = "adapters"
GRADIENTS = "gradients"
HEAD = "head chunk"
KV_CACHE = "KV cache"
OPTIMIZER = "optimizer"
REFERENCE = "reference"
WEIGHTS = "weights"
ITEMS = (WEIGHTS, ADAPTERS, REFERENCE, OPTIMIZER, GRADIENTS, ACTIVATIONS, HEAD, KV_CACHE)


class MemoryTracker(TorchDispatchMode):
    """Follows every storage that is made inside its block until it is freed. Works on the meta device.

    What an operation takes and gives back inside itself is not seen.

    Args:
        vocabulary: tensors whose last dimension has this size count as `HEAD`, wherever they are made.

    Attributes:
        live: bytes held now, by item.
        peak: bytes by item at the moment of the largest sum since :meth:`restart`.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._vocabulary = vocabulary
        self._item = ACTIVATIONS
        self._storages: dict[int, tuple[str, int]] = {}
        self._sum = self._largest = 0

    def hold(self, tensor: Tensor, item: str) -> None:
        """Counts a tensor, made inside the block or before, as `item` from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            before, size = self._storages[key]
            self.live[before] -= size
            self.live[item] += size
            self._storages[key] = (item, size)
            return
        size = storage.nbytes()
        self._storages[key] = (item, size)
        weakref.finalize(storage, self._freed, key)
        self.live[item] += size
        self._sum += size
        if self._sum > self._largest:
            self._largest, self.peak = self._sum, self.live.copy()

    def restart(self) -> None:
        """Forgets the peak."""
        self._largest, self.peak = self._sum, self.live.copy()

    @contextmanager
    def item(self, name: str) -> Iterator[None]:
        """Counts what is made inside the block as `name`."""
        before, self._item = self._item, name
        try:
            yield
        finally:
            self._item = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._storages:
                self.hold(tensor, self._item_of(tensor))
        return made

    def _item_of(self, tensor: Tensor) -> str:
        is_logits = tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary
        return HEAD if is_logits and self._item == ACTIVATIONS else self._item

    def _freed(self, key: int) -> None:
        item, size = self._storages.pop(key)
        self.live[item] -= size
        self._sum -= size


def hold_model(tracker: MemoryTracker, model: nn.Module, item: str | None = None) -> None:
    """Counts a model's parameters and buffers; without `item`, as `ADAPTERS` or `WEIGHTS`, by their names."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tracker.hold(tensor, item or (ADAPTERS if is_adapter(name) else WEIGHTS))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: _hold_gradient(tracker, p))


def is_adapter(name: str) -> bool:
    """Whether peft gave a parameter of this name to a model."""
    return "lora_" in name


def _hold_gradient(tracker: MemoryTracker, parameter: torch.Tensor) -> None:
    if parameter.grad is not None:
        tracker.hold(parameter.grad, GRADIENTS)
