"""The files of a run folder, read as far as they go: a run may be under way, cut off, or of an earlier version."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

_STEP = "step"
_TRAINED = "loss"
"""A metric of each training step: its first step tells where a resumed run took up."""


@dataclass(frozen=True)
class Series:
    """A metric over optimizer steps.

    Args:
        steps: [N] int64, rising.
        values: [N] float64, finite.
    """

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])


def read_json(path: Path, gaps: list[str]) -> dict[str, Any]:
    """A JSON file's object; empty if it is missing or cannot be read, which `gaps` then says."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        gaps.append(f"{path.name} cannot be read ({error})")
        return {}
    if not isinstance(content, dict):
        gaps.append(f"{path.name} holds no JSON object")
        return {}
    return content


def read_jsonl(path: Path, gaps: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSONL file; lines that are none, such as a last one that was cut off, are counted in `gaps`."""
    if not path.is_file():
        return []
    rows = [_object_of(line) for line in path.read_bytes().splitlines() if line.strip()]
    torn = rows.count(None)
    if torn:
        gaps.append(f"{torn} {'line' if torn == 1 else 'lines'} of {path.name} cannot be read")
    return [row for row in rows if row is not None]


def _object_of(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def read_yaml(path: Path, gaps: list[str]) -> dict[str, Any]:
    """A YAML file's mapping; empty if it is missing or cannot be read, which `gaps` then says."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        gaps.append(f"{path.name} cannot be read ({error})")
        return {}
    return content if isinstance(content, dict) else {}


def read_metrics(folder: Path) -> dict[str, Series]:
    """The metrics of a CSV logger's versions, by name.

    Each version after the first is that of a resumed run: what an earlier one logged from its first step on is left
    out, since that was done again.

    Args:
        folder: holds `version_0`, `version_1` and so on.
    """
    points: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("version_*/metrics.csv"), key=_version):
        read = _read_csv(path)
        if _TRAINED in read:
            _drop_from(points, min(read[_TRAINED]))
        for name, values in read.items():
            points.setdefault(name, {}).update(values)
    return {name: _series(values) for name, values in points.items() if values}


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _drop_from(points: Mapping[str, dict[int, float]], first: int) -> None:
    for values in points.values():
        for step in [step for step in values if step >= first]:
            del values[step]


def _read_csv(path: Path) -> dict[str, dict[int, float]]:
    read: dict[str, dict[int, float]] = {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file)
        names = next(rows, [])
        if _STEP not in names:
            return {}
        for cells in rows:
            for name, step, value in _points(names, cells):
                read.setdefault(name, {})[step] = value
    return read


def _points(names: Sequence[str], cells: Sequence[str]) -> Iterator[tuple[str, int, float]]:
    """Each finite number of a row that is whole, with its name and the row's step."""
    if len(cells) != len(names):
        return
    row = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
    step = _number(row.pop(_STEP, ""))
    if step is None:
        return
    for name, cell in row.items():
        value = _number(cell)
        if value is not None:
            yield name, int(step), value


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _series(values: Mapping[int, float]) -> Series:
    steps = sorted(values)
    return Series(np.array(steps, dtype=np.int64), np.array([values[step] for step in steps], dtype=np.float64))
