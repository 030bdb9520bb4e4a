"""Records of tensors that move to a device as one."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T", bound="OnDevice")


class OnDevice:
    """Gives a record of tensors the methods `to` and `pin_memory` that Lightning and torch call.

    Its attributes are the arguments of its constructor; those that are neither tensors nor such records stay as they
    are.
    """

    def to(self: _T, device: torch.device | str, non_blocking: bool = False) -> _T:
        """Moves the tensors. To a GPU they go by way of pinned memory, so that the host does not wait for them."""
        if torch.device(device).type == "cuda":
            return self._map("pin_memory")._map("to", device, non_blocking=True)
        return self._map("to", device, non_blocking=non_blocking)

    def pin_memory(self: _T) -> _T:
        """Copies the tensors that are not on a GPU yet to memory that a GPU can read by itself."""
        return self._map("pin_memory")

    def _map(self: _T, method: str, *args: Any, **kwargs: Any) -> _T:
        moved = {name: _call(value, method, *args, **kwargs) for name, value in vars(self).items()}
        return type(self)(**moved)


def _call(value: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(value, Tensor | OnDevice):
        return value
    if method == "pin_memory" and isinstance(value, Tensor) and value.device.type != "cpu":
        return value
    return getattr(value, method)(*args, **kwargs)
