"""Two processes of one run, forked, that talk by gloo."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DDP: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
"""Arguments of a Trainer inside of a function that :func:`on_two_ranks` runs."""


def on_two_ranks(folder: Path, run: Callable[..., Any], *args: Any) -> list[Any]:
    """What `run(*args)` returns in each of two processes, which find each other as a launcher would have them do.

    Args:
        folder: for the results.
        run: makes a Trainer with :data:`DDP`.
        args: of `run`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, port, folder, run, args)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    for process in ranks:
        process.kill()  # of those that hang
    assert [process.exitcode for process in ranks] == [0, 0]
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in (0, 1)]


def _rank(rank: int, port: int, folder: Path, run: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", **where)
    (folder / f"rank{rank}.pickle").write_bytes(pickle.dumps(run(*args)))
