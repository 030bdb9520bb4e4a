"""What two run folders do not have in common, but for the clock."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

OF_A_CLOCK = ("seconds", "activities", "share_of_training", "environment", "outputs", "load", "judges")
JSON_FILES = ("boundary.jsonl", "samples.jsonl", "answers.jsonl", "summary.json", "reward_quality.json")


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
