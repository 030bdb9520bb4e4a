"""Shared parts of the benchmarks: the two trainers and the report."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_align.doctor.models import Pair
from lit_align.doctor.peer import BETA, trl_trainer

PACKAGES = ("lit-align", "torch", "lightning", "transformers", "peft", "trl", "accelerate")


@dataclass(frozen=True)
class Shape:
    """The lengths of a pair in tokens: its prompt and each of its two completions."""

    name: str
    prompt: int
    completion: int

    def __str__(self) -> str:
        return f"{self.prompt} + 2x{self.completion}"


# ---------------------------------------------------------------------- lit-align


def lit_module(model: Path | str, rank: int | None, dtype: str, learning_rate: float, compiled: bool = False) -> Any:
    """Makes lit-align's module with DPO and AdamW, which is fused as in TRL; `rank` None trains all weights."""
    import torch

    from lit_align import AlignmentModule
    from lit_align.losses import DPO
    from lit_align.policy import LoraSpec, PolicySpec

    lora = None if rank is None else LoraSpec(r=rank, alpha=2 * rank)
    module = AlignmentModule(
        PolicySpec(str(model), dtype=dtype, lora=lora, compile=compiled),  # type: ignore[arg-type]
        DPO(beta=BETA),
        optimizer=lambda params: torch.optim.AdamW(params, lr=learning_rate, weight_decay=0.0, fused=True),
    )
    module.configure_model()
    return module


def lit_fit(module: Any, batches: Sequence[Any], steps: int, callback: Any, folder: Path) -> None:
    """Trains on the batches with a plain Lightning trainer that writes nothing."""
    from torch.utils.data import DataLoader

    dataset: Any = batches  # a list serves as one, though torch does not declare it
    lit_trainer(steps, callback, folder).fit(module, DataLoader(dataset, batch_size=None))


def lit_trainer(steps: int, callback: Any, folder: Path) -> Any:
    """Makes a plain Lightning trainer that writes nothing."""
    from lightning.pytorch import Trainer

    return Trainer(
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


# ---------------------------------------------------------------------- TRL


def trl_side(model: Path, dtype: str, pairs: Sequence[Pair], compiled: bool = False, **settings: Any) -> Any:
    """Loads a model and makes TRL's DPOTrainer for it; see :func:`lit_align.doctor.peer.trl_trainer`."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    return trl_trainer(loaded, pairs, torch_compile=compiled, **settings)


# ---------------------------------------------------------------------- report


ALLOCATORS = {"kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}, "system": {}}
"""How glibc treats freed memory in a measured process. kept: it keeps it, as lit-align sets in every fit on a CPU
(`lit_align/policy/cpu/host_memory.py`). system: the default, which returns it; a lit-align fit still sets the other."""


def measured_environment(threads: int, allocator: str = "kept") -> dict[str, str]:
    """Returns the environment of a measured process: no network, `threads` threads of torch."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")},
        **ALLOCATORS[allocator],
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def machine(threads: int) -> dict[str, Any]:
    """Describes the machine of a measurement and its load."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table in Markdown, aligned for the terminal."""
    from lit_align.markdown import markdown_table

    return markdown_table([header, *rows], aligned=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")
    print(f"written: {path}", file=sys.stderr)


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)
