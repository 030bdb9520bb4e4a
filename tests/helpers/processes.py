"""Functions run in processes of their own, forked: they start with everything imported."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch

DDP: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
"""Arguments of a Trainer inside of a function that :func:`on_two_ranks` runs."""


def exit_code_of(run: Callable[..., Any], *args: Any, timeout: float = 300) -> int | None:
    """Runs `run(*args)` in a process of its own, which SIGINT interrupts, and returns how that process ended."""
    return _ended([_start(run, *args)], timeout)[0]


def run_script(
    script: Path, *arguments: str, folder: Path, environment: dict[str, str], timeout: float = 300
) -> CompletedProcess[str]:
    """Runs a Python script as the command line does it, in a process of its own.

    Args:
        script: path of the file; its folder is the first that modules are looked for in.
        arguments: of the script.
        folder: the working directory, which also gets the files `stdout` and `stderr`.
        environment: variables that the process has besides its parent's.
        timeout: seconds until the process is killed.
    """
    code = exit_code_of(_run_script, script, arguments, folder, environment, timeout=timeout)
    outputs = [(folder / name).read_text() for name in ("stdout", "stderr")]
    return CompletedProcess([str(script), *arguments], -1 if code is None else code, *outputs)


def _run_script(script: Path, arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    os.chdir(folder)
    os.environ.update(environment)
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def on_two_ranks(folder: Path, run: Callable[..., Any], *args: Any) -> list[Any]:
    """Runs `run(*args)` on two ranks, see :func:`on_ranks`; :data:`DDP` has their Trainer's arguments."""
    return on_ranks(2, folder, run, *args)


def on_ranks(world: int, folder: Path, run: Callable[..., Any], *args: Any) -> list[Any]:
    """Runs `run(*args)` in processes that talk by gloo and find each other as a launcher would have them do.

    Args:
        world: the number of processes; one runs without a process group.
        folder: for the results.
        run: makes a Trainer with :data:`DDP`, or joins a process group, whose address and rank are in the environment.
        args: of `run`.

    Returns:
        what `run` returns in each of them.
    """
    port = free_port()
    ranks = [_start(_rank, rank, world, port, folder, run, args) for rank in range(world)]
    assert _ended(ranks, 120) == [0] * world
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(world)]


def exit_codes_of_ranks(world: int, folder: Path, run: Callable[..., Any], *args: Any) -> list[int | None]:
    """As :func:`on_ranks`, for ranks that may fail: how each of them ended; what they print is in `folder`/out.txt."""
    port = free_port()
    return _ended([_start(_heard_rank, rank, world, port, folder, run, args) for rank in range(world)], 90)


def free_port() -> int:
    """A port of the loopback that nobody uses at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _rank(rank: int, world: int, port: int, folder: Path, run: Callable[..., Any], args: tuple[Any, ...]) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world), **address)
    (folder / f"rank{rank}.pickle").write_bytes(pickle.dumps(run(*args)))


def _heard_rank(rank: int, world: int, port: int, folder: Path, run: Callable[..., Any], args: tuple[Any, ...]) -> None:
    output = os.open(folder / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    _rank(rank, world, port, folder, run, args)


def _start(run: Callable[..., Any], *args: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_child, args=(run, args))
    process.start()
    return process


def _child(run: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    run(*args)


def _ended(processes: list[BaseProcess], timeout: float) -> list[int | None]:
    """Exit codes; a process that hangs is killed."""
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes
