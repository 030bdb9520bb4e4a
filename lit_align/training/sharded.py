"""The strategy under which the weights, the gradients and the optimizer's state are spread over the devices (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_align.policy.sharding import spread_like
from lit_align.policy.spec import PolicySpec
from lit_align.training.sharded_files import FOLDER, read_meta, read_parts, save_parts

NAME = "fsdp2"
_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` with all devices in one group, by the name of `fsdp2`.

    Each device keeps its part of the weights, the gradients and the optimizer's state, and gets a layer's whole weights
    only while that layer runs (FSDP2). Checkpoints hold the trained weights, as under any other strategy: by default in
    one file that any number of devices, also one without this strategy, goes on from.

    Args:
        sharded_checkpoint: writes a checkpoint as a folder, to which each device writes its own part, for models whose
            weights and optimizer state do not fit into the memory of one process. Any number of devices under this
            strategy goes on from it.
        process_group_backend: such as "nccl" or "gloo"; None takes the device's usual one.
        timeout: how long a device waits for the others.
    """

    strategy_name = NAME

    def __init__(
        self,
        sharded_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=sharded_checkpoint, process_group_backend=process_group_backend, timeout=timeout
        )
        self.sharded_checkpoint = sharded_checkpoint

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are loaded before the optimizer is made, as under DDP: `configure_model` has spread them by then."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        precision = str(trainer.precision)
        if precision not in _PRECISIONS:
            raise ValueError(
                f"strategy {NAME!r} does not support precision {precision}: expected one of {', '.join(_PRECISIONS)}"
            )
        # Weights that are brought together in inference mode could not be trained on later.
        for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
            loop.inference_mode = False
        trainer.predict_loop.inference_mode = False
        super().setup(trainer)

    # ------------------------------------------------------------------ checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The parts of the tensors that a checkpoint holds; nothing is exchanged."""
        module = cast(Any, self.lightning_module)
        names = module.saved_names()
        return {name: value for name, value in module.state_dict().items() if name in names}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The parts of the optimizer's state; nothing is exchanged."""
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Brings each tensor together on the first device and writes a file, or writes all parts into a folder."""
        path = Path(self.broadcast(filepath))
        if self.sharded_checkpoint:
            save_parts(checkpoint, path, (storage_options or {}).get("previous"), self.barrier)
        else:
            Strategy.save_checkpoint(self, _joined(checkpoint, self.is_global_zero), path, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a file, or of a folder without its tensors, of which each device reads its parts later."""
        path = Path(self.broadcast(checkpoint_path))
        return read_meta(path) if path.is_dir() else Strategy.load_checkpoint(self, path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes this device's parts of the saved weights, and leaves them in the checkpoint for the optimizer."""
        own = cast(Any, self.lightning_module).state_dict()
        saved = checkpoint["state_dict"]
        saved.update(_own_parts(checkpoint, "state_dict", saved, own))
        cast(Any, self.lightning_module).load_state_dict(saved, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this device's parts of the optimizer's state."""
        for index, (optimizer, saved) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=True)):
            weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            values: dict[str, Any] = {}
            likes: dict[str, Tensor] = {}
            for number, state in saved["state"].items():
                values.update((f"{number}/{key}", value) for key, value in state.items())
                likes.update((f"{number}/{key}", weights[number]) for key in state)
            parts = _own_parts(checkpoint, f"optimizer_states/{index}/state", values, likes)
            own = {number: {key: parts[f"{number}/{key}"] for key in state} for number, state in saved["state"].items()}
            optimizer.load_state_dict({**saved, "state": own})


def demand_shardable(spec: PolicySpec) -> None:
    """Refuses a model that cannot be spread, before it is loaded.

    Raises:
        ValueError: its base is quantised.
    """
    if spec.quantization is not None:
        raise ValueError(
            f"strategy {NAME!r} does not spread a base in {spec.quantization}: drop policy.quantization, since each "
            'device then holds a part of the base only, or take strategy "ddp" with it'
        )


def _joined(value: Any, keep: bool) -> Any:
    """A nested value with whole tensors in the host's memory; all devices must call it.

    Args:
        value: of dicts, lists and tuples.
        keep: whether this device wants the tensors; others only take part in bringing each together.
    """
    if isinstance(value, DTensor):
        together = value.full_tensor()
        return together.cpu() if keep else None
    if isinstance(value, dict):
        return {key: _joined(item, keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_joined(item, keep) for item in value])
    return value


def _own_parts(
    checkpoint: Mapping[str, Any], prefix: str, saved: Mapping[str, Any], likes: Mapping[str, Tensor]
) -> dict[str, Any]:
    """This device's parts of saved tensors: of those as large as the weights that they belong to.

    Args:
        checkpoint: the content of a file or of a folder.
        prefix: the keys that lead to `saved` in it, with / between them.
        saved: values by name.
        likes: the weights that they belong to, by the same names.
    """
    if FOLDER in checkpoint:
        saved = read_parts(checkpoint[FOLDER], prefix, saved, likes)
    return {
        name: spread_like(value, likes[name]) if getattr(value, "shape", None) == likes[name].shape else value
        for name, value in saved.items()
    }


StrategyRegistry.register(NAME, ShardedStrategy, description="Weights, gradients and optimizer state are sharded")
