"""Runs torch without computing: counts the bytes that tensors would hold, and remembers the peak."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ACTIVATIONS = "activations"
ADAPTERS = "adapters"
GRADIENTS = "gradients"
HEAD = "head chunk"
KV_CACHE = "KV cache"
OPTIMIZER = "optimizer"
REFERENCE = "reference"
WEIGHTS = "weights"
ITEMS = (WEIGHTS, ADAPTERS, REFERENCE, OPTIMIZER, GRADIENTS, ACTIVATIONS, HEAD, KV_CACHE)

_CPU = torch.device("cpu")
_META = torch.device("meta")
_MOST_VALUES = 1 << 22
"""Tensors with more elements than this have only shapes, no values."""


class PlannedTensor(Tensor):
    """A tensor that takes no memory on the device that it claims to be on.

    Only `device` claims it: torch itself sees a CPU, and so chooses its fused attention, as it does on GPUs.

    `content` is a tensor on the meta device; for few numbers that do not depend on weights (lengths, positions, masks)
    it is one on the CPU with their values.
    """

    content: Tensor
    planned_device: torch.device
    is_planned = True
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, content: Tensor, device: torch.device) -> PlannedTensor:
        planned: PlannedTensor = Tensor._make_wrapper_subclass(
            cls, content.shape, content.stride(), content.storage_offset(), dtype=content.dtype, device=_CPU
        )
        planned.content = content
        planned.planned_device = device
        return planned

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} of a planned tensor outside of its MemoryTracker")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.planned_device

    def cpu(self, *_: Any) -> Any:
        return _COPY(self, device=_CPU)

    def tolist(self) -> Any:
        return np.zeros(self.shape, int).tolist() if self.content.is_meta else self.content.tolist()


class MemoryTracker(TorchDispatchMode):
    """A mode in which only small integers are computed, and every storage is counted until it is freed.

    Tensors on the meta device stand for those on the planned device. A number that depends on weights is read as 0. A
    selection of places that depends on weights is read as all places or, in an index, as none. Memory that an
    operation allocates and frees within itself is not seen.

    Args:
        device: the planned device, as code within the block sees it: "cpu", or "meta" for any other.
        vocabulary: tensors whose last dimension has this size count as `HEAD`, wherever they are made.

    Attributes:
        live: bytes held now, by item.
        peak: bytes by item at the moment of the largest sum since :meth:`restart`.
        item: the item that new tensors count as.
    """

    def __init__(self, device: str, vocabulary: int) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.item = ACTIVATIONS
        self._device = torch.device(device)
        self._vocabulary = vocabulary
        self._storages: dict[int, tuple[str, int]] = {}
        self._sum = self._largest = 0

    def hold(self, tensor: Tensor, item: str) -> None:
        """Counts a tensor, made within the block or before, as `item` from now on."""
        storage = _content(tensor).untyped_storage()
        before, size = self._storages.get(storage._cdata, (None, storage.nbytes()))
        self._storages[storage._cdata] = (item, size)
        self.live[item] += size
        if before is not None:
            self.live[before] -= size
            return
        weakref.finalize(storage, self._free, storage._cdata)
        self._sum += size
        if self._sum > self._largest:
            self.restart()

    def hold_model(self, model: nn.Module, item: str | None = None) -> None:
        """Counts parameters, buffers and later gradients; without `item`, as `ADAPTERS` or `WEIGHTS` by their names."""
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.hold(tensor, item or (ADAPTERS if is_adapter(name) else WEIGHTS))
            if tensor.requires_grad:
                tensor.register_post_accumulate_grad_hook(lambda p: self.hold(p.grad, GRADIENTS))

    def restart(self) -> None:
        """Forgets the peak."""
        self._largest = self._sum
        self.peak = self.live.copy()

    @contextmanager
    def counting_as(self, item: str) -> Iterator[None]:
        """Counts tensors that are made within the block as `item`."""
        before = self.item
        self.item = item
        try:
            yield
        finally:
            self.item = before

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Counts tensors of each pass of `model` as `ACTIVATIONS`, and those from its output layer on as `HEAD`."""

        def begin(item: str, *_: Any) -> None:
            self.item = item

        head = model.get_output_embeddings()
        hooks = [
            unit.register_forward_pre_hook(partial(begin, item)) for unit, item in ((model, ACTIVATIONS), (head, HEAD))
        ]
        with self.counting_as(self.item):
            yield
        for hook in hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = _operation(func)
        if operation.is_view and args[0].is_meta:  # of a weight, and on the meta device like it
            return func(*args, **(kwargs or {}))
        tensors: list[Tensor] = []

        def unwrap(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return _content(tensor)

        contents, options = _map_tensors(unwrap, [args, kwargs or {}])
        has_values = not any(_content(tensor).is_meta for tensor in tensors)
        if operation.writes:  # into its first argument
            if has_values:
                func(*contents, **options)
            return args[0] if func._schema.returns else None
        source = self._device if any(map(self._is_on_device, tensors)) else _CPU
        device = torch.device(options.get("device") or source)
        device = self._device if device == _META else device
        is_there = func is _COPY and device == source and options.get("dtype") in (None, args[0].dtype)
        result = contents[0] if is_there else operation.run(contents, options, has_values)
        return _map_tensors(lambda tensor: self._plan(tensor, device), result)

    def _is_on_device(self, tensor: Tensor) -> bool:
        return tensor.device in (self._device, _META)

    def _plan(self, content: Tensor, device: torch.device) -> Tensor:
        if device == self._device and content.untyped_storage()._cdata not in self._storages:
            is_logits = content.dim() > 1 and content.shape[-1] == self._vocabulary
            self.hold(content, HEAD if is_logits and self.item == ACTIVATIONS else self.item)
        return PlannedTensor(content, device)

    def _free(self, key: int) -> None:
        item, size = self._storages.pop(key)
        self.live[item] -= size
        self._sum -= size


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter of peft."""
    return "lora_" in name


class _Operation:
    """An operation of torch, and how to run it without computing."""

    def __init__(self, func: Any) -> None:
        self.writes = func._schema.name.endswith("_")
        aliases = [returned.alias_info for returned in func._schema.returns]
        self._func = func
        self.is_view = not self.writes and (func is _UNSAFE_VIEW or any(alias is not None for alias in aliases))
        self._reads_values = func is not _INDEX and bool(
            {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        )
        self._results: dict[Any, Any] = {}

    def run(self, args: Any, kwargs: Any, has_values: bool) -> Any:
        """Runs it with values if they are known, otherwise only with shapes."""
        if self.is_view:
            return self._func(*args, **kwargs)
        if self._func is _INDEX:
            args = [args[0], list(chain.from_iterable(map(_places, args[1])))]
        if self._reads_values:
            unknown = int(self._func is _NONZERO)
            return self._run_on(_CPU, lambda tensor: _with_values(tensor, unknown), args, kwargs)
        shapes = self._shapes(args, kwargs)
        if has_values and _may_have_values(shapes):
            return self._run_on(_CPU, lambda tensor: tensor, args, kwargs)
        return _map_tensors(_like, shapes)

    def _shapes(self, args: Any, kwargs: Any) -> Any:
        """Runs it on the meta device; once for equal shapes, since that takes torch long."""
        key = _key([args, kwargs])
        if key not in self._results:
            self._results[key] = self._run_on(_META, lambda tensor: tensor.to(_META), args, kwargs)
        return self._results[key]

    def _run_on(self, device: torch.device, change: Callable[[Tensor], Tensor], args: Any, kwargs: Any) -> Any:
        args, kwargs = _map_tensors(change, [args, kwargs])
        if "device" in kwargs:
            kwargs["device"] = device
        kwargs.pop("pin_memory", None)
        return self._func(*args, **kwargs)


_COPY = torch.ops.aten._to_copy.default
_INDEX = torch.ops.aten.index.Tensor
_NONZERO = torch.ops.aten.nonzero.default
_UNSAFE_VIEW = torch.ops.aten._unsafe_view.default
_operation = cache(_Operation)


def _may_have_values(result: Any) -> bool:
    """Whether a result is few whole numbers."""
    if isinstance(result, Tensor):
        return result.numel() <= _MOST_VALUES and not result.is_floating_point()
    return all(map(_may_have_values, result)) if isinstance(result, list | tuple) else True


def _with_values(content: Tensor, unknown: int) -> Tensor:
    return torch.full(content.shape, unknown, dtype=content.dtype) if content.is_meta else content


def _like(shape: Tensor) -> Tensor:
    """A new tensor; `empty_like` takes ten times as long on the meta device."""
    return torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype, device=_META)


def _places(index: Tensor | None) -> list[Any]:
    """Converts a mask to the indices of its true places, since the meta device takes no masks."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return list(_with_values(index, 0).nonzero().unbind(1))


def _content(tensor: Tensor) -> Tensor:
    return tensor.content if isinstance(tensor, PlannedTensor) else tensor


def _map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """Changes every tensor in a value, also in its lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_tensors(change, part) for key, part in value.items()}
    if not isinstance(value, list | tuple) or (value and isinstance(value[0], int)):  # sizes are many
        return value
    return type(value)([_map_tensors(change, part) for part in value])


def _key(value: Any) -> Any:
    """What the shapes of a result depend on, to look them up."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple((name, _key(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value
