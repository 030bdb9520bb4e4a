"""Runs the arms that have no record yet, a few at a time. A record is a JSON file, written at an arm's end."""

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
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.arm import Arm, run_arm
from experiments.plan import expected_seconds, saves_adapter, with_parents
from experiments.setup import Setup

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "peft", "lightning")
RECORD_DEPENDENCIES = (
    "lit_align/*.py", "lit_align/boundary/*.py", "lit_align/data/*.py", "lit_align/judges/base.py",
    "lit_align/judges/rule.py", "lit_align/losses/*.py", "lit_align/metrics/*.py", "lit_align/policy/*.py",
    "lit_align/sampling/*.py", "callbacks/*.py", "experiments/arm.py", "experiments/evaluation.py",
    "experiments/schedules.py", "experiments/setup.py", "experiments/tasks.py", "experiments/lists.py",
    "experiments/arithmetic.py", "experiments/sampled.py",
    "configs/quickstart/rule.py", "configs/quickstart/*.jsonl", "configs/quickstart/words.txt",
)  # fmt: skip
"""The files that a record depends on."""


@lru_cache(maxsize=1)
def code_version() -> str:
    """Returns eight digits that change with the code, data and libraries behind a record, but not with comments."""
    digest = hashlib.blake2b(digest_size=4)
    for path in sorted(chain.from_iterable(map(ROOT.glob, RECORD_DEPENDENCIES))):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(_without_prose(content) if path.suffix == ".py" else content)
    digest.update(repr(versions()).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that influence the numbers."""
    versions_by_name = {}
    for name in PACKAGES:
        try:
            versions_by_name[name] = version(name)
        except PackageNotFoundError:
            versions_by_name[name] = "?"
    return versions_by_name


def _without_prose(source: bytes) -> bytes:
    """Returns Python code without comments, docstrings and layout, for hashing."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [statement for statement in body if not _is_docstring(statement)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


class Records:
    """A folder with a JSON file for each finished arm.

    Args:
        folder: the folder of one version of the code, with records, adapters of starting points and a log.
        setup: the settings that the arms share.
    """

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.folder = folder
        self.setup = setup

    def path(self, arm: Arm) -> Path:
        return self.folder / "arms" / f"{self._name(arm)}.json"

    def adapter(self, arm: Arm) -> Path:
        """Returns the folder of an arm's trained adapter."""
        return self.folder / "adapters" / self._name(arm)

    def _name(self, arm: Arm) -> str:
        settings = json.dumps([asdict(arm), asdict(self.setup)], sort_keys=True)
        return f"{arm}-{hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()}"

    def finished(self, arm: Arm) -> bool:
        return self.path(arm).exists()

    def write(self, arm: Arm, record: dict[str, Any]) -> None:
        """Writes a record in one step, so that an existing file is always complete."""
        path = self.path(arm)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)

    def read(self, arms: Iterable[Arm]) -> dict[Arm, dict[str, Any]]:
        """Reads the records of the arms that are finished."""
        finished = filter(self.finished, arms)
        return {arm: json.loads(self.path(arm).read_text(encoding="utf-8")) for arm in finished}


def work(arm: Arm, setup: Setup, folder: Path) -> None:
    """Runs one arm and writes its record."""
    records = Records(folder, setup)
    running = folder / "running" / str(arm)
    shutil.rmtree(running, ignore_errors=True)  # files of an arm that was killed
    adapter = records.adapter(arm.parent) if arm.parent else None
    save_to = records.adapter(arm) if saves_adapter(arm) else None
    record = run_arm(arm, setup, adapter, folder, save_to)
    record |= {"code": code_version(), "versions": versions(), "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
    records.write(arm, record)
    shutil.rmtree(running)


def run(arms: Sequence[Arm], setup: Setup, folder: Path, workers: int) -> list[str]:
    """Runs the arms that are not finished.

    Args:
        arms: the arms; those that make their starting points are added.
        setup: the settings that all arms share.
        folder: the folder for the records.
        workers: number of processes; with more than one each computes on one thread.

    Returns:
        One line per failed arm, also for those whose starting point failed. The next call tries them again.
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
                        "a worker was killed, perhaps out of memory: the same command continues; --workers 1 needs less"
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
        smoothing=0,  # the mean pace of this call, as arms differ
        dynamic_ncols=True,
    )


def _log_to(path: Path) -> None:
    """Redirects a worker's output to a file, as the terminal shows the progress bar."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
