"""Strategies that would train wrongly are refused by name, in both Trainers, before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)

from lit_align import DPO, AlignmentModule, AlignmentTrainer, PolicySpec, ShardedStrategy
from lit_align.reward import RewardModule
from lit_align.training.strategies import check_strategy

REFUSED = ["fsdp", "fsdp_cpu_offload", "deepspeed", "deepspeed_stage_3_offload", "xla", "ddp_spawn", "ddp_fork",
           "ddp_notebook", "ddp_spawn_find_unused_parameters_true"]  # fmt: skip
TAKEN = ["auto", "ddp", "fsdp2", "single_device", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"strategy '{name}' is not supported.*\"ddp\""):
        AlignmentTrainer(strategy=name, accelerator="cpu", devices=2, default_root_dir=str(tmp_path))


@pytest.mark.parametrize("strategy", [*TAKEN, "no_such", SingleDeviceStrategy(), DDPStrategy(), ShardedStrategy()])
def test_taken(strategy: Any) -> None:
    check_strategy(strategy)


def test_each_name_of_lightning_is_taken_or_refused() -> None:
    for name in StrategyRegistry.available_strategies():
        if name in TAKEN or name == "single_xla" or name == "single_tpu":
            check_strategy(name)
        else:
            with pytest.raises(ValueError, match="not supported"):
                check_strategy(name)


OBJECTS = {
    ModelParallelStrategy: "lit_align.ShardedStrategy",
    FSDPStrategy: "deprecated",
    DeepSpeedStrategy: "on CUDA only",
}


@pytest.mark.parametrize("kind", list(OBJECTS))
def test_refused_as_an_object(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"strategy {kind.__name__} is not supported.*{OBJECTS[kind]}.*fsdp2"):
        check_strategy(object.__new__(kind))  # DeepSpeed and GPUs are not here


@pytest.mark.parametrize("make", [lambda spec: AlignmentModule(spec, DPO()), RewardModule])
def test_refused_by_the_plain_trainer_before_the_model_is_looked_for(make: Any, tmp_path: Path) -> None:
    trainer = Trainer(strategy=DDPStrategy(start_method="fork"), accelerator="cpu", devices=1, logger=False,
                      enable_checkpointing=False, default_root_dir=tmp_path)  # fmt: skip
    module = make(PolicySpec("no/model"))
    module.trainer = trainer
    with pytest.raises(ValueError, match="strategy DDPStrategy is not supported: it starts its processes by 'fork'"):
        module.setup("fit")


def test_a_sharded_model_is_not_quantised(tmp_path: Path) -> None:
    trainer = Trainer(strategy="fsdp2", accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path,
                      enable_checkpointing=False)  # fmt: skip
    module = AlignmentModule(PolicySpec("no/model", quantization="nf4"), DPO())
    module.trainer = trainer
    with pytest.raises(ValueError, match="does not spread a base in nf4: drop policy.quantization"):
        module.setup("fit")
