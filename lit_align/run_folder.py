"""The folder of a run: the names of its files, its lock, and the archive of earlier runs."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_align.console import note
from lit_align.files import written_whole

LOCK = ".lock"
CONFIG = "config.yaml"
DECISIONS = "boundary.jsonl"
SAMPLES = "samples.jsonl"
ANSWERS = "answers.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
PREDICTIONS = "predictions.jsonl"
DROPPED = "predictions_dropped.jsonl"
MODEL = "model"
BEST_MODEL = "best_model"
MODELS = (MODEL, BEST_MODEL)
REWARD_MODEL = "reward_model"
REWARD_QUALITY = "reward_quality.json"
EVALUATIONS = "evaluations"
EVALUATION = "evaluation.json"
TASKS = "tasks.json"
CHECKPOINTS = "checkpoints"
CSV_LOGS = "csv"
TENSORBOARD_LOGS = "tensorboard"
PREVIOUS = "previous"
OWN = (
    CONFIG, DECISIONS, SAMPLES, ANSWERS, SUMMARY, REPORT, PREDICTIONS, DROPPED, *MODELS, REWARD_MODEL, REWARD_QUALITY,
    EVALUATIONS, CHECKPOINTS, CSV_LOGS, TENSORBOARD_LOGS,
)  # fmt: skip


RUNS = Path("runs")
"""Where runs lie unless a configuration says otherwise."""


def locate_run(path: str | Path) -> Path:
    """The place that a user means by a path or by the bare name of a run; it may not exist.

    Args:
        path: a path, or NAME for `runs/NAME`. A path that is there counts first.
    """
    place = Path(path).expanduser()
    by_name = RUNS / place
    return by_name if not place.is_absolute() and not place.exists() and by_name.exists() else place


class RunFolderInUse(OSError):
    """Raised if another process trains in the run folder."""


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Reserves a run folder for this process while the block runs.

    The lock is the system's on an open file: it ends with the process, however that ends.

    Args:
        root: the run folder; it is made if it is missing, and removed again if nothing was written into it.

    Raises:
        RunFolderInUse: another process has it.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / LOCK
    lock = FileLock(path)
    owner = path.read_text(encoding="utf-8").strip() if path.is_file() else ""  # filelock before 4 empties it
    try:
        lock.acquire(blocking=False)
    except Timeout:
        owner = owner or path.read_text(encoding="utf-8").strip() or "another process"
        raise RunFolderInUse(
            f"{root} is in use: {owner} trains in it. Wait for it or end it, or choose another folder for this run "
            "with the Trainer's default_root_dir (--trainer.default_root_dir DIR)"
        ) from None
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # still locked: others that have opened it see it gone
        lock.release()
        with suppress(OSError):  # it holds the run
            root.rmdir()


def is_locked(root: Path) -> bool:
    """Whether a process trains in a run folder now."""
    path = root / LOCK
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def archive(root: Path) -> Path | None:
    """Moves the files of an earlier run in `root` to `previous/N/`; files of other names stay.

    Returns:
        The folder that it moved them to; None if there were none.
    """
    present = [root / name for name in OWN if (root / name).exists()]
    if not present:
        return None
    taken = [int(folder.name) for folder in (root / PREVIOUS).glob("*") if folder.name.isdigit()]
    target = root / PREVIOUS / str(max(taken, default=0) + 1)
    target.mkdir(parents=True)
    for path in present:
        path.rename(target / path.name)
    return target


def put_back(root: Path, moved: Path) -> None:
    """Undoes :func:`archive` for a run that failed before it trained; that run's own files are deleted."""
    for name in OWN:
        new = root / name
        if new.is_dir():
            shutil.rmtree(new)
        else:
            new.unlink(missing_ok=True)
        if (moved / name).exists():
            (moved / name).rename(new)
    moved.rmdir()
    if not any((root / PREVIOUS).iterdir()):
        (root / PREVIOUS).rmdir()


@contextmanager
def earlier_put_aside(root: Path, has_trained: Callable[[], bool]) -> Iterator[None]:
    """Archives the earlier run in `root`; if the block fails before it trained, puts it back: nothing replaces it."""
    moved = archive(root)
    try:
        yield
    except BaseException:
        if moved is not None and not has_trained():
            put_back(root, moved)
        raise
    if moved is not None:
        note(f"The earlier run in this folder is now in {moved}")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all; NaN and infinities become null, which every reader understands."""
    text = json.dumps(_to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    with written_whole(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, whole or not at all."""
    lines = [json.dumps(_to_plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    with written_whole(path) as part:
        part.write_text("".join(lines), encoding="utf-8")


def _to_plain(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value
