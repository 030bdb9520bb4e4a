"""Checks, before a model is loaded, that a run's strategy is supported."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)

from lit_align.training.sharded import ShardedStrategy

POPEN = "popen"
"""How DDP starts the processes of the other devices: each runs the command again."""


def check_strategy(strategy: str | Strategy) -> None:
    """Refuses strategies under which a run would go wrong: those that shard weights in other ways, fork or spawn.

    Args:
        strategy: as the Trainer takes it; Lightning itself refuses a name that it does not know.

    Raises:
        ValueError: the strategy is neither of one device, nor plain DDP, nor `fsdp2`.
    """
    name, kind, start = _resolve(strategy)
    if kind is None or issubclass(kind, SingleDeviceStrategy | ShardedStrategy):
        return
    # Those of DeepSpeed and XLA inherit from DDPStrategy, but do not keep whole models.
    if not issubclass(kind, DDPStrategy) or issubclass(kind, DeepSpeedStrategy) or "xla" in kind.__module__:
        raise ValueError(
            f"strategy {name} is not supported: {_reason(kind)}. {_ADVICE} For a model that is too large for one "
            'device: "fsdp2" on several, or `quantization: nf4` with `lora` on one.'
        )
    if start != POPEN:
        raise ValueError(
            f"strategy {name} is not supported: it starts its processes by {start!r}, which does not bring the trained "
            f"weights back. {_ADVICE} In a notebook, use one device; for several, run a script."
        )


def _reason(kind: type[Any]) -> str:
    if issubclass(kind, FSDPStrategy):
        return "it is the first FSDP, which torch has deprecated, and fsdp2 does the same"
    if issubclass(kind, ModelParallelStrategy):
        return "by itself it saves the frozen base in each checkpoint; lit_align.ShardedStrategy is made of it"
    if issubclass(kind, DeepSpeedStrategy):
        return "it keeps optimizer and checkpoints to itself and runs on CUDA only, so that no test of it could run"
    return "each device would train its own weights and save a part of them"


_ADVICE = (
    'Expected "auto", "ddp", "ddp_find_unused_parameters_true" or "fsdp2" (several devices), or one device (devices: '
    "1)."
)


def _resolve(strategy: str | Strategy) -> tuple[str, type[Any] | None, str]:
    """A strategy's name for a message, its class (None if Lightning decides), and how it starts processes."""
    if isinstance(strategy, Strategy):
        return type(strategy).__name__, type(strategy), getattr(strategy, "_start_method", POPEN)
    entry: dict[str, Any] = dict(StrategyRegistry).get(
        strategy, {}
    )  # StrategyRegistry's own `get` would make a strategy
    return f"{strategy!r}", entry.get("strategy"), entry.get("init_params", {}).get("start_method", POPEN)
