"""Trains the same model on the same pairs in the same order with lit-align and TRL, and compares every loss.

    python benchmarks/parity.py

Full training in float32 of a small random Llama, prompts and completions of mixed lengths. The exit code is 1 if the
loss of any step differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from common import lit_fit, lit_module, machine, table, trl_side, write_json

from lit_align.doctor.models import Pair, RandomLlama, pair_batches, random_pairs

MODEL = RandomLlama(hidden=96, layers=3, vocabulary=512)
LONGEST_PROMPT = 48
LONGEST_COMPLETION = 40


def main() -> int:
    options = _options()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = MODEL.save(folder / "model")
        pairs = random_pairs(options.steps * options.batch_size, _draw_lengths, MODEL.vocabulary)
        lit = lit_losses(model, pairs, options, folder)
        trl = trl_losses(model, pairs, options, folder)
    differences = [abs(a - b) for a, b in zip(lit, trl, strict=True)]
    rows = [
        [str(step), f"{a:.6f}", f"{b:.6f}", f"{d:.1e}"]
        for step, (a, b, d) in enumerate(zip(lit, trl, differences, strict=True))
    ]
    print(table(["step", "lit-align", "TRL", "difference"], rows))
    equal = len(lit) == options.steps and max(differences) <= options.tolerance
    print(
        f"largest difference {max(differences):.1e}, tolerance {options.tolerance:.0e}: "
        f"{'equal' if equal else 'NOT EQUAL'}"
    )
    write_json(
        options.output,
        {
            "benchmark": "parity",
            "machine": machine(options.threads),
            "options": vars(options),
            "model": MODEL,
            "lit_align": lit,
            "trl": trl,
            "largest_difference": max(differences),
            "equal": equal,
        },
    )
    return 0 if equal else 1


def lit_losses(model: Path, pairs: list[Pair], options: argparse.Namespace, folder: Path) -> list[float]:
    from lightning.pytorch import Callback

    losses: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(outputs["loss"].item())

    module = lit_module(model, None, "float32", options.learning_rate)
    lit_fit(module, pair_batches(pairs, options.batch_size), options.steps, Losses(), folder)
    return losses


def trl_losses(model: Path, pairs: list[Pair], options: argparse.Namespace, folder: Path) -> list[float]:
    trainer = trl_side(
        model,
        "float32",
        pairs,
        batch_size=options.batch_size,
        steps=options.steps,
        rank=None,
        learning_rate=options.trl_learning_rate or options.learning_rate,
        precompute=False,
        folder=folder,
    )
    trainer.train()
    losses: list[float] = trainer.step_losses
    return losses


def _draw_lengths(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(1, LONGEST_PROMPT), rng.randint(1, LONGEST_COMPLETION), rng.randint(1, LONGEST_COMPLETION)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=4, help="pairs per step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="learning rate of both sides")
    parser.add_argument(
        "--trl-learning-rate", type=float, help="another learning rate for TRL, to see what a difference looks like"
    )
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest allowed difference of a step's loss")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/parity.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
