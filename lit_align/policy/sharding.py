"""Models whose weights are spread over the devices of a run, by `fully_shard` of torch (FSDP2, arXiv:2304.11277).

Each device keeps its part of each weight. A layer's weights are brought together when it runs, and given up after it:
so all devices must run the same passes at the same time. Within :func:`gathered` each holds everything and runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_align.policy.internals import repeated_layers

_GATHERED: WeakSet[nn.Module] = WeakSet()
"""The models that each device holds whole at the moment."""


def shard_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Spreads a model's weights over the devices, layer by layer; what is outside of its layers stays together.

    Gradients are averaged over the devices in float32.

    Args:
        model: a model of transformers, or one wrapped by peft. Each device keeps its part of the weights that it has
            itself: of fresh adapters that it has drawn by itself, too.
        mesh: the devices, in one dimension.

    Raises:
        ValueError: trained weights that are brought together differ in dtype.
    """
    base = _base(model)
    units = [*reversed(repeated_layers(base)), base]  # from the inside out, as fully_shard demands
    _demand_one_dtype(units)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))


def shard_like(model: nn.Module, other: nn.Module) -> None:
    """Spreads a model as another one is; does nothing if that is whole."""
    mesh = mesh_of(other)
    if mesh is not None:
        shard_model(model, mesh)


def mesh_of(model: nn.Module) -> DeviceMesh | None:
    """The devices that a model is spread over; None for a whole one."""
    parts = (parameter.device_mesh for parameter in _base(model).parameters() if isinstance(parameter, DTensor))
    return next(parts, None) if is_sharded(model) else None


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is spread over devices."""
    return isinstance(_base(model), FSDPModule)


def in_lockstep(model: nn.Module) -> bool:
    """Whether the devices must run the same passes of a model at the same time."""
    return is_sharded(model) and _base(model) not in _GATHERED


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gives every device all weights within the block, to run the model as often as it likes; for a whole one nothing.

    All devices must enter it together, unless they are in such a block of the same model already. It takes the memory
    of the whole model on each.
    """
    base = _base(model)
    if not in_lockstep(model):
        yield
        return
    parts = [cast(FSDPModule, module) for module in base.modules() if isinstance(module, FSDPModule)]
    _GATHERED.add(base)
    try:
        for part in parts:
            part.unshard()
            if part is not base:  # which keeps its own weights after a pass in any case
                part.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        _GATHERED.discard(base)
        for part in parts:
            if part is not base:
                part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def outer_gathered(model: nn.Module) -> AbstractContextManager[None]:
    """Gives every device the weights outside of the layers within the block, such as those of the LM head.

    They are read outside of a forward pass. A backward gives them up; where there is none, the end of the block does.
    """
    return _outer_gathered(cast(FSDPModule, _base(model))) if in_lockstep(model) else nullcontext()


@contextmanager
def _outer_gathered(base: FSDPModule) -> Iterator[None]:
    base.unshard()
    try:
        yield
    finally:
        if not torch.is_grad_enabled():
            base.reshard()


@contextmanager
def trained_whole(model: nn.Module) -> Iterator[None]:
    """Gives every device the whole trained weights within the block, to read them; for a whole model nothing.

    All devices must enter it together, and no pass may run in it.
    """
    with _replaced(model, True, lambda part: whole(part.detach())):
        yield


@contextmanager
def whole_on_first(model: nn.Module, trained_only: bool) -> Iterator[None]:
    """Gives the first process the whole weights in the host's memory within the block, to save them.

    All devices must enter it together, and no pass may run in it.

    Args:
        model: a model; nothing happens to a whole one.
        trained_only: leaves the frozen weights as they are.
    """
    first = dist.is_initialized() and dist.get_rank() == 0

    def value_of(part: Tensor) -> Tensor:
        together = whole(part.detach())
        return together.cpu() if first else part  # the others only help to bring it together

    with _replaced(model, trained_only, value_of):
        yield


@contextmanager
def _replaced(model: nn.Module, trained_only: bool, value_of: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Puts values in the place of a model's parts within the block. Weights that modules share stay shared."""
    own = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor) and (parameter.requires_grad or not trained_only)
    ]
    values: dict[Tensor, nn.Parameter] = {}
    try:
        for module, name, part in own:
            if part not in values:
                values[part] = nn.Parameter(value_of(part), part.requires_grad)
            module._parameters[name] = values[part]
        yield
    finally:
        for module, name, part in own:
            module._parameters[name] = part


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all devices; all of them must call it. A whole one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This device's part of a tensor; a whole one as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Spreads a whole tensor, the same on every device, as another of the same shape is; nothing is exchanged."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    local = tensor.to(other.device)
    return distribute_tensor(local, other.device_mesh, other.placements, src_data_rank=None)


def _base(model: nn.Module) -> nn.Module:
    """The model itself, or the one inside of peft's, in whose layers the adapters are."""
    anything: Any = model
    return cast(nn.Module, anything.get_base_model()) if hasattr(model, "peft_config") else model


def _demand_one_dtype(units: list[nn.Module]) -> None:
    seen: set[nn.Parameter] = set()
    for unit in units:
        trained = [p for p in unit.parameters() if p.requires_grad and p not in seen]
        seen.update(trained)
        dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in trained})
        if len(dtypes) > 1:
            raise ValueError(
                f"weights that are sharded together must be trained in one dtype, but those of a "
                f"{type(unit).__name__} are in {' and '.join(dtypes)}: set policy.dtype to one of them"
            )
