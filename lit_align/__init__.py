"""lit-align: preference alignment that measures its stage while it trains and swaps the data source to fit."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_align.boundary import (
        BoundaryCallback,
        BoundaryResult,
        BoundaryScore,
        Decision,
        SequentialTest,
        measure_sets,
    )
    from lit_align.data import AlignmentDataModule
    from lit_align.judges import (
        CachedJudge,
        ChatJudge,
        CombinedJudge,
        PairRM,
        RecordedScores,
        RewardModelJudge,
        RuleJudge,
    )
    from lit_align.loggers import TrackioLogger
    from lit_align.losses import DPO, RSOHinge, SLiCHF
    from lit_align.policy import LoraSpec, PolicySpec
    from lit_align.progress import AlignmentProgressBar, PlainProgress
    from lit_align.report import WinRateCallback
    from lit_align.reward import RewardDataModule, RewardModule
    from lit_align.sampling import ServerSampler, TransformersSampler
    from lit_align.trained import TrainedRun, open_run
    from lit_align.trainer import AlignmentTrainer
    from lit_align.training.checkpoint import AlignmentCheckpoint
    from lit_align.training.lr_schedulers import ScheduleSequence, WarmupSchedule
    from lit_align.training.module import AlignmentModule
    from lit_align.training.refresh import ReferenceRefresh
    from lit_align.training.sharded import ShardedStrategy

# Loaded when first asked for: `lit-align --help` and `import lit_align` need not wait for torch.
_HOME = {
    "AlignmentCheckpoint": "training.checkpoint",
    "AlignmentDataModule": "data",
    "AlignmentModule": "training.module",
    "AlignmentProgressBar": "progress",
    "AlignmentTrainer": "trainer",
    "BoundaryCallback": "boundary",
    "BoundaryResult": "boundary",
    "BoundaryScore": "boundary",
    "CachedJudge": "judges",
    "ChatJudge": "judges",
    "CombinedJudge": "judges",
    "DPO": "losses",
    "Decision": "boundary",
    "LoraSpec": "policy",
    "PairRM": "judges",
    "PlainProgress": "progress",
    "PolicySpec": "policy",
    "RSOHinge": "losses",
    "RecordedScores": "judges",
    "ReferenceRefresh": "training.refresh",
    "RewardDataModule": "reward",
    "RewardModelJudge": "judges",
    "RewardModule": "reward",
    "RuleJudge": "judges",
    "SLiCHF": "losses",
    "ScheduleSequence": "training.lr_schedulers",
    "SequentialTest": "boundary",
    "ServerSampler": "sampling",
    "ShardedStrategy": "training.sharded",
    "TrainedRun": "trained",
    "TrackioLogger": "loggers",
    "TransformersSampler": "sampling",
    "WarmupSchedule": "training.lr_schedulers",
    "WinRateCallback": "report",
    "measure_sets": "boundary",
    "open_run": "trained",
}

__all__ = [
    "DPO",
    "AlignmentCheckpoint",
    "AlignmentDataModule",
    "AlignmentModule",
    "AlignmentProgressBar",
    "AlignmentTrainer",
    "BoundaryCallback",
    "BoundaryResult",
    "BoundaryScore",
    "CachedJudge",
    "ChatJudge",
    "CombinedJudge",
    "Decision",
    "LoraSpec",
    "PairRM",
    "PlainProgress",
    "PolicySpec",
    "RSOHinge",
    "RecordedScores",
    "ReferenceRefresh",
    "RewardDataModule",
    "RewardModelJudge",
    "RewardModule",
    "RuleJudge",
    "SLiCHF",
    "ScheduleSequence",
    "SequentialTest",
    "ServerSampler",
    "ShardedStrategy",
    "TrackioLogger",
    "TrainedRun",
    "TransformersSampler",
    "WarmupSchedule",
    "WinRateCallback",
    "measure_sets",
    "open_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lit_align' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_align.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
