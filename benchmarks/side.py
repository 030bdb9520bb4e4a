"""One side of `step.py` or `onpolicy.py`, in its own process: does one step on each request.

It reads its settings as JSON from the first line of standard input, then one request per line. The answer to `step` has
the seconds of one training step, or of one on-policy round with its number of pairs; the answer to `rate`, between
steps, has the multiply-adds per second of a matrix product. After the last step the process answers with its peak
memory and ends. Answers are JSON, one per line, on standard output; the output of libraries goes to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from common import lit_fit, lit_module, trl_side
from lightning.pytorch import Callback
from peft.tuners.lora.layer import Linear as LoraLinear
from rounds import run_lit_rounds, run_trl_rounds
from transformers import AutoConfig, TrainerCallback

from lit_align.doctor.floor import product_rate, synchronize, work_of_step
from lit_align.doctor.models import Pair, pair_batches, random_pairs
from lit_align.doctor.speed import plain_rows
from lit_align.policy.lora import InPlaceLoraLinear
from lit_align.policy.source import locate_model

LEARNING_RATE = 1e-5


class Steps:
    """Holds the training loop until a step is requested, and answers with its time."""

    def __init__(self, requests: TextIO, answers: TextIO, dtype: torch.dtype) -> None:
        self._requests = requests
        self._answers = answers
        self._dtype = dtype
        self._start = 0.0

    def ready(self, **facts: Any) -> None:
        self.answer(ready=True, resident=resident(), **facts)

    def begin(self) -> None:
        while (request := self._requests.readline().strip()) == "rate":
            self.answer(rate=product_rate(self._dtype, device()))
        if request != "step":
            raise SystemExit(f"expected the request 'step' or 'rate', got {request!r}")
        synchronize(device())
        self._start = time.perf_counter()

    def end(self, **facts: Any) -> None:
        synchronize(device())
        self.answer(seconds=time.perf_counter() - self._start, **facts)

    def answer(self, **content: Any) -> None:
        print(json.dumps(content), file=self._answers, flush=True)


class LitSteps(Callback):
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._steps.begin()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._steps.end()


class TRLSteps(TrainerCallback):
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._steps.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._steps.end()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    steps = Steps(sys.stdin, answers, getattr(torch, settings["dtype"]))
    with tempfile.TemporaryDirectory() as folder:
        SIDES[settings["side"]](settings, steps, Path(folder))
    steps.answer(peak=peak(), peak_device=peak_device())


def run_lit(settings: dict[str, Any], steps: Steps, folder: Path) -> None:
    module = lit_module(settings["model"], settings["rank"], settings["dtype"], LEARNING_RATE, settings["compile"])
    module.to(device())
    batches = [batch.to(device()) for batch in pair_batches(equal_pairs(settings), settings["pairs"])]
    for batch in batches:
        chosen, rejected = module.run_reference(batch)
        batch.reference_chosen_logps = chosen.sum()
        batch.reference_rejected_logps = rejected.sum()
    steps.ready(work=work(module.policy, settings))
    lit_fit(module, batches, settings["steps"], LitSteps(steps), folder)


def run_plain(settings: dict[str, Any], steps: Steps, folder: Path) -> None:
    """Trains the same module without its fast paths.

    Two plain rows per pair, peft's LoRA layers, and the reference in every step.
    """
    InPlaceLoraLinear.forward = LoraLinear.forward  # type: ignore[method-assign,assignment]
    module = lit_module(settings["model"], settings["rank"], settings["dtype"], LEARNING_RATE)
    module._forward = plain_rows
    steps.ready(work=work(module.policy, settings))
    lit_fit(module, pair_batches(equal_pairs(settings), settings["pairs"]), settings["steps"], LitSteps(steps), folder)


def run_trl(settings: dict[str, Any], steps: Steps, folder: Path) -> None:
    trainer = trl_side(
        Path(locate_model(settings["model"])),
        settings["dtype"],
        equal_pairs(settings),
        batch_size=settings["pairs"],
        steps=settings["steps"],
        rank=settings["rank"],
        learning_rate=LEARNING_RATE,
        precompute=True,
        compiled=settings["compile"],
        folder=folder,
        callbacks=[TRLSteps(steps)],
    )
    steps.ready()
    trainer.train()


SIDES = {
    "lit-align": run_lit,
    "plain": run_plain,
    "trl": run_trl,
    "lit-align rounds": run_lit_rounds,
    "trl rounds": run_trl_rounds,
}


def equal_pairs(settings: dict[str, Any]) -> list[Pair]:
    """Makes two batches of pairs that all have the same lengths, so that neither side pads."""
    vocabulary = AutoConfig.from_pretrained(locate_model(settings["model"])).vocab_size
    lengths = (settings["prompt"], settings["completion"], settings["completion"])
    return random_pairs(2 * settings["pairs"], lambda _: lengths, vocabulary)


def work(model: Any, settings: dict[str, Any]) -> dict[str, int]:
    return work_of_step(model, settings["pairs"], settings["prompt"], settings["completion"])


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def resident() -> int:
    """Returns the bytes of memory that the process holds now."""
    return _status("VmRSS")


def peak() -> int:
    """Returns the most bytes of memory that the process has held."""
    return _status("VmHWM")


def peak_device() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _status(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
