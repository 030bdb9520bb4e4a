"""Runs that are killed, terminated and interrupted at random moments, against the same runs left alone.

    PYTHONPATH=. python benchmarks/kills.py --n 20

Each trial starts a tiny run, ends it once or twice with SIGKILL, SIGTERM or SIGINT at a random time, resumes it to its
end, and compares weights, optimizer, schedules, the order of the data, decisions, logs, the summary and files with
those of a run of the same kind that was never stopped, bit by bit. It exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything

from lit_align import AlignmentDataModule, AlignmentTrainer, BoundaryCallback
from lit_align.judges import RuleJudge
from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.report import WinRateCallback
from lit_align.reward import RewardDataModule, RewardModule
from lit_align.sampling import TransformersSampler
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.module import AlignmentModule
from tests.helpers.tiny import save_tiny_model

STEPS = 8
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OF_A_CLOCK = ("seconds", "activities", "share_of_training", "environment", "outputs", "load", "judges")
JSON_FILES = ("boundary.jsonl", "samples.jsonl", "answers.jsonl", "summary.json", "reward_quality.json")


class Order(Callback):
    """Writes down which tokens each micro-batch holds."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        row = [trainer.datamodule.delivered, batch.chosen.ids.tolist(), float(outputs["loss"]).hex()]
        with Path(trainer.default_root_dir, f"order{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def rows() -> list[dict[str, Any]]:
    texts = [(f"Give fact {n}.", f"a much longer tea {n}", f"tea {n}") for n in range(24)]
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in texts]


def variety(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [len(set(text)) / (1 + len(text)) for text in candidates]


def fit(kind: str, model: Path, folder: Path) -> None:
    """One run of a kind, from its last checkpoint if it has one."""
    seed_everything(1)
    settings: dict[str, Any] = {"train": rows(), "val_fraction": 0.4, "batch_size": 2, "seed": 4}
    callbacks: list[Callback] = [Order(), AlignmentCheckpoint(every_n_train_steps=3)]
    if kind == "reward":
        spec = PolicySpec(model=str(model), lora=LoraSpec(r=2, dropout=0.2))
        module: Any = RewardModule(spec, optimizer=make_optimizer)
        data: Any = RewardDataModule(**settings)
    else:
        spec = PolicySpec(model=str(model), lora=LoraSpec(r=2, dropout=0.2))
        module = AlignmentModule(spec, DPO(beta=0.5), optimizer=make_optimizer, lr_scheduler=make_schedule)
        if kind == "online":
            sampler = TransformersSampler(num_candidates=2, max_new_tokens=5)
            settings |= {"judge": RuleJudge(variety), "sampler": sampler, "round_prompts": 3}
            boundary = BoundaryCallback(every_n_steps=3, max_prompts=4, sequential=False, alpha=0.9)
            callbacks += [boundary, WinRateCallback(num_prompts=3, every_n_steps=4)]
        data = AlignmentDataModule(**settings)
    devices: dict[str, Any] = {"devices": 2, "strategy": "ddp"} if kind == "ddp" else {}
    trainer = AlignmentTrainer(
        default_root_dir=folder, max_steps=STEPS, accelerator="cpu", accumulate_grad_batches=2, val_check_interval=4,
        check_val_every_n_epoch=None, callbacks=callbacks, enable_progress_bar=False, **devices,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path="last")


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def make_schedule(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


def start(kind: str, model: Path, folder: Path) -> list[BaseProcess]:
    """The processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = range(2 if kind == "ddp" else 1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_child, args=(rank, port, kind, model, folder)) for rank in ranks]
    for process in processes:
        process.start()
    return list(processes)


def _child(rank: int, port: int, kind: str, model: Path, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if kind == "ddp":
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", **address)
    folder.mkdir(parents=True, exist_ok=True)
    output = os.open(folder.with_suffix(f".{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    fit(kind, model, folder)


def end(processes: list[BaseProcess], number: int | None, after: float) -> list[int | None]:
    """Waits, sends a signal (Ctrl-C reaches all processes of a run, others one of them) and gives the exit codes."""
    processes[0].join(after)
    if number is not None:
        for process in processes if number == signal.SIGINT else processes[:1]:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def differences(whole: Path, stopped: Path) -> Iterator[str]:
    """What is not alike."""
    checkpoints = [load(folder / "checkpoints/last.ckpt") for folder in (whole, stopped)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        if not same(checkpoints[0][key], checkpoints[1][key]):
            yield f"checkpoint: {key}"
    for name, read in (("order", read_order), ("csv", read_csv), ("model", read_model), ("files", read_names)):
        if read(whole) != read(stopped):
            yield name
    for name in JSON_FILES:
        if read_json(whole / name) != read_json(stopped / name):
            yield name


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(torch.equal(left, right)) if isinstance(left, torch.Tensor) else bool(left == right)


def read_order(folder: Path) -> dict[str, Any]:
    """Each micro-batch as it was taken last."""
    order = {}
    for path in folder.glob("order*.jsonl"):
        for line in path.read_text().splitlines():
            place, *content = json.loads(line)
            order[f"{path.name} {place}"] = content
    return order


def read_csv(folder: Path) -> dict[int, dict[str, str]]:
    """The last value of each metric at each step."""
    logged: dict[int, dict[str, str]] = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        for row in csv.DictReader(path.open()):
            values = {name: value for name, value in row.items() if value and not timed(name)}
            logged.setdefault(int(row["step"]), {}).update(values)
    return logged


def timed(metric: str) -> bool:
    return "seconds" in metric or "share_of_training" in metric


def read_model(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*model/*.safetensors")}


def read_names(folder: Path) -> set[str]:
    """Without what a run that was stopped before its first checkpoint has left to the one that began anew."""
    return {path.name for path in folder.iterdir()} - {"previous", ".lock"}


def read_json(path: Path) -> Any:
    if not path.exists():
        return None
    return [without_clock(json.loads(text)) for text in split(path)]


def split(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_clock(item)
            for key, item in value.items()
            if key not in OF_A_CLOCK and not key.endswith("_seconds")
        }
    return [without_clock(item) for item in value] if isinstance(value, list) else value


def trial(kind: str, model: Path, whole: Path, folder: Path, seconds: float, rng: random.Random) -> tuple[str, bool]:
    """Stops a run once or twice, lets it end and says how it went."""
    events = []
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.choice(SIGNALS)
        after = rng.uniform(0.0, seconds)
        codes = end(start(kind, model, folder), number, after)
        events.append(f"{signal.Signals(number).name} after {after:.2f} s -> {codes}")
    codes = end(start(kind, model, folder), None, 300)
    found = list(differences(whole, folder)) if set(codes) == {0} else [f"the resumed run ended with {codes}"]
    return f"{kind}: {'; '.join(events)}: {', '.join(found) or 'alike'}", not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="trials")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, signals and moments")
    parser.add_argument("--kinds", nargs="+", default=["static", "online", "reward", "ddp"], help="of runs")
    parser.add_argument("--folder", type=Path, default=None, help="where the runs are kept; a temporary one by default")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    root = options.folder or Path(tempfile.mkdtemp(prefix="kills"))
    model = save_tiny_model(root / "model")
    took: dict[str, float] = {}
    alike = 0
    for number in range(options.n):
        kind = options.kinds[number % len(options.kinds)]
        whole = root / f"{kind}-whole"
        if kind not in took:
            began = time.monotonic()
            codes = end(start(kind, model, whole), None, 300)
            assert set(codes) == {0}, f"{kind} fails by itself: see {whole.with_suffix('.0.txt')}"
            took[kind] = time.monotonic() - began
        text, passed = trial(kind, model, whole, root / f"{kind}-{number}", took[kind], rng)
        alike += passed
        print(f"{number + 1:3} {text}", flush=True)
    print(f"{alike} of {options.n} runs that were stopped are alike; they are in {root}")
    return 0 if alike == options.n else 1


if __name__ == "__main__":
    sys.exit(main())
