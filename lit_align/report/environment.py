"""What a run ran on: versions and devices, without names of machines, people and folders."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from lightning.pytorch import Trainer

PACKAGES = (
    "lit-align", "torch", "lightning", "transformers", "peft", "bitsandbytes", "datasets", "safetensors", "vllm",
)  # fmt: skip


def describe_environment(trainer: Trainer) -> dict[str, Any]:
    """Versions of packages, the platform, and what the run computes on.

    Args:
        trainer: of the run.
    """
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{device.type} ({name})",
        "processes": trainer.world_size,
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        **({"cuda": torch.version.cuda} if device.type == "cuda" else {}),
        "versions": {package: installed for package in PACKAGES if (installed := _version(package)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
