"""Exports a trained run: the adapter, the adapter merged into its base, or all weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn

from lit_align import run_folder
from lit_align.export.card import CardFacts, write_card
from lit_align.export.check import Difference, Probe, demand_equal
from lit_align.export.folder import write_model
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.spec import PolicySpec
from lit_align.trained import TrainedPolicy, TrainedRun
from lit_align.trained.policy import load_policy
from lit_align.training.sharded_files import is_sharded, read_checkpoint

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Export:
    """What was exported.

    Args:
        folder: where.
        exported: the exported model against the policy in the same precision; None if it was not checked.
        trained: the exported model against the policy as it was trained, where that was in another precision, such as
            on a base in 4 bits.
    """

    folder: Path
    exported: Difference | None = None
    trained: Difference | None = None


def export_run(
    run: TrainedRun,
    output: str | Path,
    merge: bool = False,
    dtype: Dtype | None = None,
    max_shard_size: str | None = None,
    check: bool = True,
    device: str | None = None,
) -> Export:
    """Writes a trained policy as a folder that transformers and peft load without anything of lit-align.

    Args:
        run: as from :func:`lit_align.open_run`.
        output: the folder to write, whole or not at all.
        merge: merges the adapter into its base, in the precision of `dtype`: a base that was in 4 bits is merged into
            as it was before that.
        dtype: of the weights that are written; None keeps that in which the base was trained, and float32 for an
            adapter alone.
        max_shard_size: the largest file of weights, such as "2GB".
        check: loads what was written by transformers and peft alone, and compares its log-probs with the policy's.
        device: where to compute; None takes the GPU, if there is one.

    Raises:
        FileExistsError: `output` is there already.
        ValueError: there is no adapter to merge, or the check finds another model than the trained one.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} is there already, and export overwrites nothing: choose another --output")
    spec = _spec_to_load(run, merge, dtype)
    trained = None
    if check and spec != run.start and spec is not None:
        trained = Probe.of(run.load(device))
    policy = load_policy(spec, run.weights, device)
    probe = Probe.of(policy, None if trained is None else trained.answers) if check else None
    model = _to_write(policy, merge, dtype)
    facts = CardFacts(run.name, run.spec, run.config, _summary(run), _moment(run), _notes(run, merge))
    found: list[Difference] = []

    def compare(folder: Path) -> None:
        if probe is not None:
            if policy.spec.quantization is None:
                nn.Module.to(model, "meta")  # its memory is needed for the other one
            found.extend(demand_equal(folder, policy.spec, probe, trained))

    write_model(output, model, policy.spec, policy.tokenizer, partial(write_card, facts), max_shard_size, compare)
    return Export(output, *found)


def _spec_to_load(run: TrainedRun, merge: bool, dtype: Dtype | None) -> PolicySpec | None:
    """How to load the policy for the export: as it was trained, unless it is merged."""
    if not merge:
        return run.start
    if run.start is None or (run.start.lora is None and run.start.adapter is None):
        raise ValueError(f"{run.name} has no adapter to merge: all of its weights were trained. Leave --merge out")
    return replace(run.start, quantization=None, dtype=dtype or run.start.dtype)


@torch.no_grad()
def _to_write(policy: TrainedPolicy, merge: bool, dtype: Dtype | None) -> Any:
    model: Any = policy.model
    if merge:
        with quiet_libraries():
            return model.merge_and_unload()
    if dtype is None:
        return model
    if not isinstance(model, PeftModel):
        return nn.Module.to(model, getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.to(getattr(torch, dtype))
    return model


def _summary(run: TrainedRun) -> dict[str, Any]:
    path = None if run.root is None else run.root / run_folder.SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}


def _moment(run: TrainedRun) -> str:
    if run.weights.is_dir() and not is_sharded(run.weights):
        return f"`{run.weights.name}`"
    checkpoint = read_checkpoint(run.weights)
    return f"step {checkpoint['global_step']}"


def _notes(run: TrainedRun, merge: bool) -> list[str]:
    if not merge:
        return []
    quantized = run.spec.quantization
    of_quantized = f", which was in {quantized} during training and is in full precision here" if quantized else ""
    return [f"The adapter is merged into its base{of_quantized}."]
