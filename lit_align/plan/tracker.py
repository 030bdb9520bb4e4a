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

_META = torch.device("meta")
_MOST_VALUES = 1 << 22
"""Tensors with more elements than this have only shapes, no values."""


class PlannedTensor(Tensor):
    """A tensor that claims to be on a device and takes no memory there.

    `content` is a tensor on the meta device; for few numbers that do not depend on weights (lengths, positions, masks)
    it is one on the CPU with their values.
    """

    content: Tensor
    is_planned = True
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, content: Tensor, device: torch.device) -> PlannedTensor:
        planned: PlannedTensor = Tensor._make_wrapper_subclass(
            cls,
            content.shape,
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            device=device,
        )
        planned.content = content
        return planned

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} of a planned tensor outside of its MemoryTracker")

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
        if operation.is_view and _content(args[0]).is_meta:
            return _view(args[0], func, args[1:], kwargs or {})
        if operation.writes and isinstance(args[0], Tensor) and _content(args[0]).is_meta:
            return args[0]
        call = _Call(args, kwargs or {})
        result = None if operation.writes and not call.has_values else operation.run(call)
        if operation.writes:  # into its first argument
            return args[0] if func._schema.returns else None
        device = torch.device(call.kwargs.get("device") or call.device)
        return _map_tensors(lambda tensor: self._plan(tensor, device), result)

    def _plan(self, content: Tensor, device: torch.device) -> Tensor:
        device = self._device if device == _META else device
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


class _Call:
    """The arguments of an operation, with the contents in the place of planned tensors."""

    def __init__(self, args: Any, kwargs: dict[str, Any]) -> None:
        self.device = "cpu"
        self.has_values = True
        self.args = [_map_tensors(self._content, value) for value in args]
        self.kwargs = {
            name: _map_tensors(self._content, value) for name, value in kwargs.items() if name != "pin_memory"
        }

    def run(self, func: Any, device: str, change: Callable[[Tensor], Tensor]) -> Any:
        """Runs `func` on this device, with the tensors changed."""
        kwargs = {name: _map_tensors(change, value) for name, value in self.kwargs.items()}
        if "device" in kwargs:
            kwargs["device"] = device
        return func(*[_map_tensors(change, value) for value in self.args], **kwargs)

    def _content(self, tensor: Tensor) -> Tensor:
        content = _content(tensor)
        if content.is_meta:
            self.has_values = False
        if tensor.is_meta:
            self.device = "meta"
        return content


class _Operation:
    """An operation of torch, and how to run it without computing."""

    def __init__(self, func: Any) -> None:
        self.func = func
        self.writes = func._schema.name.endswith("_")
        aliases = [returned.alias_info for returned in func._schema.returns]
        self.is_view = not self.writes and any(alias is not None for alias in aliases)
        self._reads_values = func is not _INDEX and bool(
            {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        )

    def run(self, call: _Call) -> Any:
        """Runs it with values if they are known, otherwise only with shapes."""
        if self.func is _INDEX:
            call.args = [call.args[0], list(chain.from_iterable(map(_places, call.args[1])))]
        if self._reads_values:
            unknown = int(self.func is torch.ops.aten.nonzero.default)
            return call.run(self.func, "cpu", lambda tensor: _with_values(tensor, unknown))
        if call.has_values and (self.is_view or self.writes):
            return call.run(self.func, "cpu", _same)
        if self.func is _COPY and not call.has_values and call.args[0].is_contiguous():
            dtype = call.kwargs.get("dtype") or call.args[0].dtype
            return torch.empty(call.args[0].shape, dtype=dtype, device="meta")  # torch takes ten times as long for it
        shapes = call.run(self.func, "meta", _shape)
        if call.has_values and _may_have_values(shapes):
            return call.run(self.func, "cpu", _same)
        return shapes


_COPY = torch.ops.aten._to_copy.default
_INDEX = torch.ops.aten.index.Tensor
_operation = cache(_Operation)


def _view(tensor: Tensor, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Makes a view of a tensor without values; that of a weight is on the meta device like the weight."""
    view = func(_content(tensor), *args, **kwargs)
    if not isinstance(tensor, PlannedTensor):
        return view
    return _map_tensors(partial(PlannedTensor, device=tensor.device), view)


def _may_have_values(result: Any) -> bool:
    """Whether a result is few whole numbers."""
    if isinstance(result, Tensor):
        return result.numel() <= _MOST_VALUES and not result.is_floating_point()
    return all(map(_may_have_values, result)) if isinstance(result, list | tuple) else True


def _shape(content: Tensor) -> Tensor:
    return content if content.is_meta else content.to("meta")


def _same(content: Tensor) -> Tensor:
    return content


def _with_values(content: Tensor, unknown: int) -> Tensor:
    return torch.full(content.shape, unknown, dtype=content.dtype) if content.is_meta else content


def _places(index: Tensor | None) -> list[Any]:
    """Converts a mask to the indices of its true places, since the meta device takes no masks."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return list(_with_values(index, 0).nonzero().unbind(1))


def _content(tensor: Tensor) -> Tensor:
    return tensor.content if isinstance(tensor, PlannedTensor) else tensor


def _map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """Changes every tensor in a value, also in its lists and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if not isinstance(value, list | tuple) or (value and isinstance(value[0], int)):  # sizes are many
        return value
    return type(value)([_map_tensors(change, part) for part in value])
