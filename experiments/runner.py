"""Runs the arms that have no record yet, a few at a time, each record a JSON file that is written last."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.arm import Arm, Setup, run_arm
from experiments.plan import expected_seconds, saves_adapter, with_parents

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "peft", "lightning")
MATTERS = (
    "lit_align/*.py", "lit_align/boundary/*.py", "lit_align/data/*.py", "lit_align/judges/base.py",
    "lit_align/judges/rule.py", "lit_align/losses/*.py", "lit_align/metrics/*.py", "lit_align/policy/*.py",
    "lit_align/sampling/*.py", "callbacks/*.py", "experiments/arm.py", "experiments/tasks.py", "experiments/lists.py",
    "configs/quickstart/rule.py", "configs/quickstart/*.jsonl", "configs/quickstart/words.txt",
)  # fmt: skip
"""The files that a record depends on."""


@lru_cache(maxsize=1)
def code_version() -> str:
    """Eight digits that change with the code, the data and the libraries behind a record, not with their comments."""
    digest = hashlib.blake2b(digest_size=4)
    for path in sorted(path for pattern in MATTERS for path in ROOT.glob(pattern)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(_without_prose(content) if path.suffix == ".py" else content)
    digest.update(repr(versions()).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of the libraries that decide the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found


def _without_prose(source: bytes) -> bytes:
    """Python code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


class Records:
    """A folder with a JSON file for each finished arm.

    Args:
        folder: holds the records of one version of the code, the adapters of starting points and a log.
        setup: of the arms.
    """

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.folder, self.setup = folder, setup

    def path(self, arm: Arm) -> Path:
        return self.folder / "arms" / f"{self._name(arm)}.json"

    def adapter(self, arm: Arm) -> Path:
        """Where the adapter that comes out of an arm is."""
        return self.folder / "adapters" / self._name(arm)

    def _name(self, arm: Arm) -> str:
        settings = json.dumps([asdict(arm), asdict(self.setup)], sort_keys=True)
        return f"{arm}-{hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()}"

    def finished(self, arm: Arm) -> bool:
        return self.path(arm).exists()

    def write(self, arm: Arm, record: dict[str, Any]) -> None:
        """In one move, so that a file that is there is whole."""
        path = self.path(arm)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)

    def read(self, arms: Iterable[Arm]) -> dict[Arm, dict[str, Any]]:
        """The records of those arms that are finished."""
        there = [arm for arm in arms if self.finished(arm)]
        return {arm: json.loads(self.path(arm).read_text(encoding="utf-8")) for arm in there}


def work(arm: Arm, setup: Setup, folder: Path) -> None:
    """Runs one arm and writes its record."""
    records = Records(folder, setup)
    running = folder / "running" / str(arm)
    shutil.rmtree(running, ignore_errors=True)  # what a killed one left
    adapter = records.adapter(arm.parent) if arm.parent else None
    save_to = records.adapter(arm) if saves_adapter(arm) else None
    record = run_arm(arm, setup, adapter, folder, save_to)
    record |= {"code": code_version(), "versions": versions(), "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
    records.write(arm, record)
    shutil.rmtree(running)


def run(arms: Sequence[Arm], setup: Setup, folder: Path, workers: int) -> list[str]:
    """Runs what is not finished.

    Args:
        arms: which; the arms that make their starting points are added.
        setup: of all of them.
        folder: of their records.
        workers: processes; with more than one each computes on one thread.

    Returns:
        What failed, one line each; it is tried anew next time. Arms that start from a failed one are left out.
    """
    records = Records(folder, setup)
    missing = [arm for arm in with_parents(arms) if not records.finished(arm)]
    total = len(with_parents(arms))
    failed: list[str] = []
    if not missing:
        print(f"All {total} arms are finished: {folder}")
        return failed
    folder.mkdir(parents=True, exist_ok=True)
    if workers > 1:
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _log_to, (folder / "log.txt",))
    running: dict[Future[None], Arm] = {}
    with pool, _bar(missing, setup) as bar:
        while True:
            for arm in _ready(missing, records)[: workers - len(running)]:
                missing.remove(arm)
                running[pool.submit(work, arm, setup, folder)] = arm
            bar.set_postfix_str(f"{total - len(missing) - len(running) - len(failed)}/{total} arms")
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                arm = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise RuntimeError(
                        "a worker was killed, perhaps out of memory: the same command goes on, --workers 1 needs less"
                    ) from error
                if error is not None:
                    failed.append(f"{arm}: {type(error).__name__}: {error}")
                    bar.write(f"failed: {failed[-1]}")
                bar.update(expected_seconds(arm, setup))
    return [*failed, *(f"{arm}: its starting point is missing" for arm in missing)]


def _ready(missing: Sequence[Arm], records: Records) -> list[Arm]:
    return [arm for arm in missing if arm.parent is None or records.finished(arm.parent)]


def _bar(missing: Sequence[Arm], setup: Setup) -> tqdm:
    return tqdm(
        total=sum(expected_seconds(arm, setup) for arm in missing),
        bar_format="{percentage:3.0f}% {bar} {elapsed} gone, {remaining} left{postfix}",
        smoothing=0,  # the mean pace of this call, since arms differ
        dynamic_ncols=True,
    )


def _log_to(path: Path) -> None:
    """Sends all that a worker says into a file: the terminal has the bar."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
