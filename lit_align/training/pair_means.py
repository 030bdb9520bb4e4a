"""Means over pairs that come in parts: the micro-batches of an optimizer step, the batches of a validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class PairMeans:
    """Gathers values of pairs and gives their means. Each pair counts once, whatever the sizes of the parts.

    Sums stay on the device, in float64 if it has that; the host does not wait for it until a mean is read.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], counted: Tensor | None = None) -> None:
        """Takes the values of some pairs.

        Args:
            values: [B] by name.
            counted: [B] bool, False for pairs that do not count; None counts all.
        """
        for name, value in values.items():
            value = value.detach().to(_widest(value.device))
            real = torch.ones_like(value, dtype=torch.bool) if counted is None else counted
            self._sums[name] = self._sums.get(name, 0) + value.where(real, 0).sum()
            self._counts[name] = self._counts.get(name, 0) + real.sum()

    def take(self, add_up: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Returns the means by name, each a float32 scalar, and starts anew.

        Args:
            add_up: [N] numbers of this rank -> their sums over all ranks, which must hold the same names.
        """
        if not self._sums:
            return {}
        sums = torch.stack([*self._sums.values(), *self._counts.values()])
        totals, counts = add_up(sums).chunk(2)
        means = dict(zip(self._sums, (totals / counts).float().unbind(), strict=True))
        self._sums = {}
        self._counts = {}
        return means


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
