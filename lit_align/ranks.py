"""Shares work among the processes of a run. Without an initialised process group each works on its own."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed as dist

_T = TypeVar("_T")


def shard() -> tuple[int, int]:
    """Returns (rank, world size), to divide work whose results :func:`gather` brings together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def own_share(items: Sequence[_T]) -> list[_T]:
    """This rank's share of items that all ranks have."""
    rank, world = shard()
    return list(items[rank::world])


def gather_in_turn(part: Sequence[_T]) -> list[_T]:
    """Brings the parts of all ranks together in the order before :func:`own_share`. All ranks must call it."""
    parts = gather(list(part))
    return [parts[n % len(parts)][n // len(parts)] for n in range(sum(map(len, parts)))]


def gather(value: _T) -> list[_T]:
    """Returns the values of all ranks, in the order of ranks, on every rank. All ranks must call it."""
    world = shard()[1]
    if world == 1:
        return [value]
    gathered: list[_T | None] = [None] * world
    dist.all_gather_object(gathered, value)
    return cast(list[_T], gathered)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Runs the block in one process of each machine after the other, for what takes much memory. All ranks enter it."""
    machines = gather(platform.node())
    own = machines[: shard()[0]].count(platform.node())
    for turn in range(max(map(machines.count, machines))):
        if turn == own:
            yield
        gather(None)


def largest(value: float, device: torch.device) -> float:
    """Returns the largest value of all ranks, on every rank. All ranks must call it.

    Args:
        value: this rank's.
        device: where it computes.
    """
    if shard()[1] == 1:
        return value
    values = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return float(values)
