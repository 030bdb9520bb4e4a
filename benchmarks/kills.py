"""Runs that are killed, terminated and interrupted at random moments, against the same runs left alone.

    PYTHONPATH=. python benchmarks/kills.py --n 20
    PYTHONPATH=. python benchmarks/kills.py --n 50 --seed 3 --record build/kills.jsonl --minutes 60

Each trial starts a tiny run, stops it once or twice at a random time (SIGKILL, SIGTERM, SIGINT, or two or three
SIGINTs in a row), resumes it to its end, and compares weights, optimizer, schedules, the order of the data, decisions,
logs, the summary and files with those of a run of the same kind that was never stopped, bit by bit. It exits with 1
where anything differs. With `--record` trials add up over many calls, and one that is in the file is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.pytorch import Callback, seed_everything
from run_difference import differences

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
KINDS = ("static", "online", "reward", "ddp", "ddp-online")
STOPS = (
    (signal.SIGKILL,),
    (signal.SIGTERM,),
    (signal.SIGINT,),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGINT, signal.SIGINT, signal.SIGINT),
)
Stop = list[tuple[signal.Signals, float]]


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
        if kind.endswith("online"):
            sampler = TransformersSampler(num_candidates=2, max_new_tokens=5)
            settings |= {"judge": RuleJudge(variety), "sampler": sampler, "round_prompts": 3}
            boundary = BoundaryCallback(every_n_steps=3, max_prompts=4, sequential=False, alpha=0.9)
            callbacks += [boundary, WinRateCallback(num_prompts=3, every_n_steps=4)]
        data = AlignmentDataModule(**settings)
    devices: dict[str, Any] = {"devices": 2, "strategy": "ddp"} if is_ddp(kind) else {}
    trainer = AlignmentTrainer(
        default_root_dir=folder, max_steps=STEPS, accelerator="cpu", accumulate_grad_batches=2, val_check_interval=4,
        check_val_every_n_epoch=None, callbacks=callbacks, enable_progress_bar=False, **devices,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path="last")


def is_ddp(kind: str) -> bool:
    return kind.startswith("ddp")


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def make_schedule(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


def start(kind: str, model: Path, folder: Path) -> list[BaseProcess]:
    """The processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = range(2 if is_ddp(kind) else 1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_child, args=(rank, port, kind, model, folder)) for rank in ranks]
    for process in processes:
        process.start()
    return list(processes)


def _child(rank: int, port: int, kind: str, model: Path, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if is_ddp(kind):
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", **address)
    folder.mkdir(parents=True, exist_ok=True)
    output = os.open(folder.with_suffix(f".{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    fit(kind, model, folder)


def end(processes: list[BaseProcess], stop: Stop | None = None) -> list[int | None]:
    """Waits, sends the signals of a stop, if any, and gives the exit codes."""
    for number, after in stop or []:
        processes[0].join(after)
        send(processes, number)
    for process in processes:
        process.join(1800)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def send(processes: list[BaseProcess], number: signal.Signals) -> None:
    """As a terminal and a cluster do: Ctrl-C reaches all processes of a run, any other signal the first one."""
    for process in processes if number == signal.SIGINT else processes[:1]:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)


def draw_stop(seconds: float, rng: random.Random) -> Stop:
    """The signals of one stop, each with the seconds that it comes after the one before."""
    numbers = rng.choice(STOPS)
    waits = [rng.uniform(0.0, seconds), *(rng.uniform(0.0, seconds / 10) for _ in numbers[1:])]
    return list(zip(numbers, waits, strict=True))


def trial(kind: str, model: Path, whole: Path, folder: Path, seconds: float, rng: random.Random) -> dict[str, Any]:
    """Stops a run once or twice, lets it end and says how it went."""
    stops = []
    for _ in range(rng.choice((1, 1, 2))):
        stop = draw_stop(seconds, rng)
        codes = end(start(kind, model, folder), stop)
        sent = ", ".join(f"{number.name} after {after:.2f} s" for number, after in stop)
        stops.append({"signals": sent, "codes": codes, "was_over": set(codes) == {0}})
    codes = end(start(kind, model, folder))
    found = list(differences(whole, folder)) if set(codes) == {0} else [f"the resumed run ended with {codes}"]
    return {"kind": kind, "stops": stops, "differences": found, "folder": str(folder)}


def is_stopped(record: dict[str, Any]) -> bool:
    """Whether a signal came before the run was over; on a busy machine runs take other times than the first one."""
    return not all(stop["was_over"] for stop in record["stops"])


def stopped_trial(kind: str, root: Path, seconds: float, rng: random.Random, name: str) -> dict[str, Any]:
    """A trial whose run was stopped before it was over."""
    while True:
        folder = root / f"{kind}-{name}-{rng.getrandbits(32):08x}"
        record = trial(kind, root / "model", root / f"{kind}-whole", folder, seconds, rng)
        if record["differences"] or is_stopped(record):
            return record
        seconds *= 0.7


def warm_up(root: Path) -> None:
    """Imports here, once, what a run imports on its way: processes that are forked later have it."""
    with Path(root, "warm-up.txt").open("w") as output, redirect_stdout(output), redirect_stderr(output):
        fit("online", root / "model", root / "warm-up")


def run_whole(kind: str, root: Path) -> float:
    """The seconds of a run of a kind that is left alone."""
    whole = root / f"{kind}-whole"
    began = time.monotonic()
    codes = end(start(kind, root / "model", whole))
    if set(codes) != {0}:
        raise SystemExit(f"{kind} fails by itself: see {whole.with_suffix('.0.txt')}")
    return time.monotonic() - began


def read_records(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []


def append_record(path: Path | None, record: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def describe(record: dict[str, Any]) -> str:
    stops = "; ".join(f"{stop['signals']} -> {stop['codes']}" for stop in record["stops"])
    return f"{record['kind']}: {stops}: {', '.join(record['differences']) or 'alike'}"


def tally(records: list[dict[str, Any]]) -> str:
    """How many runs of each kind are alike, and how many stops of each kind they had."""
    lines = []
    for kind in sorted({record["kind"] for record in records}):
        differing = [bool(record["differences"]) for record in records if record["kind"] == kind]
        lines.append(f"{kind}: {differing.count(False)} of {len(differing)}")
    stops = [stop for record in records for stop in record["stops"] if not stop["was_over"]]
    names = Counter(" ".join(re.findall("SIG[A-Z]+", stop["signals"])) for stop in stops)
    lines.append(f"stops: {', '.join(f'{names[name]} {name}' for name in sorted(names))}")
    alike = sum(not record["differences"] for record in records)
    lines.append(f"{alike} of {len(records)} runs that were stopped are alike")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="trials")
    parser.add_argument("--seed", type=int, default=0, help="of signals and moments")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="of runs")
    parser.add_argument("--folder", type=Path, default=None, help="where the runs are kept; a temporary one by default")
    parser.add_argument("--record", type=Path, default=None, help="JSONL file that each trial is added to")
    parser.add_argument("--minutes", type=float, default=None, help="begin no trial after this many")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    torch.set_num_threads(1)
    root = options.folder or Path(tempfile.mkdtemp(prefix="kills"))
    save_tiny_model(root / "model")
    warm_up(root)
    records = read_records(options.record)
    present = {(record["seed"], record["number"]) for record in records}
    took: dict[str, float] = {}
    began = time.monotonic()
    for number in range(options.n):
        if options.minutes is not None and time.monotonic() - began > 60 * options.minutes:
            break
        if (options.seed, number) in present:
            continue
        kind = options.kinds[number % len(options.kinds)]
        took[kind] = took.get(kind) or run_whole(kind, root)
        rng = random.Random(f"{options.seed} {number}")
        record = stopped_trial(kind, root, took[kind], rng, f"{options.seed}-{number}")
        record |= {"seed": options.seed, "number": number, "date": time.strftime("%Y-%m-%d %H:%M:%S")}
        append_record(options.record, record)
        records.append(record)
        print(f"{number + 1:3} {describe(record)}", flush=True)
    print(f"{tally(records)}; the runs are in {root}")
    return int(any(record["differences"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
