"""Checks, before a model is loaded, that a run's strategy is supported."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)

POPEN = "popen"
"""How DDP starts the processes of the other devices: each runs the command again."""


def check_strategy(strategy: str | Strategy) -> None:
    """Refuses strategies under which a run would go wrong: those that shard weights, fork or spawn.

    Args:
        strategy: as the Trainer takes it; Lightning itself refuses a name that it does not know.

    Raises:
        ValueError: the strategy is neither of one device nor plain DDP.
    """
    name, kind, start = _resolve(strategy)
    if kind is None or issubclass(kind, SingleDeviceStrategy):
        return
    # Those of DeepSpeed and XLA inherit from DDPStrategy, but do not keep whole models.
    if not issubclass(kind, DDPStrategy) or issubclass(kind, DeepSpeedStrategy) or "xla" in kind.__module__:
        raise ValueError(
            f"strategy {name} is not supported: each device must hold the whole model, or it would train its own "
            f"weights and save a part of them. {_ADVICE} For a model that is too large for one device: "
            "`quantization: nf4` with `lora`, and `gradient_checkpointing: true`."
        )
    if start != POPEN:
        raise ValueError(
            f"strategy {name} is not supported: it starts its processes by {start!r}, which does not bring the trained "
            f"weights back. {_ADVICE} In a notebook, use one device; for several, run a script."
        )


_ADVICE = 'Expected "auto", "ddp" or "ddp_find_unused_parameters_true" (several devices), or one device (devices: 1).'


def _resolve(strategy: str | Strategy) -> tuple[str, type[Any] | None, str]:
    """A strategy's name for a message, its class (None if Lightning decides), and how it starts processes."""
    if isinstance(strategy, Strategy):
        return type(strategy).__name__, type(strategy), getattr(strategy, "_start_method", POPEN)
    entry: dict[str, Any] = dict(StrategyRegistry).get(
        strategy, {}
    )  # StrategyRegistry's own `get` would make a strategy
    return f"{strategy!r}", entry.get("strategy"), entry.get("init_params", {}).get("start_method", POPEN)
