"""What a check is, where it works, and what it finds."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

NO_TORCHAO = "torchao is not installed: pip install 'lit-align[torchao]'"

Status = Literal["ok", "failed", "skipped"]


class Failed(Exception):
    """What a check saw is wrong; its text says what.

    Args:
        text: one sentence.
        figures: what was measured, by name.
    """

    def __init__(self, text: str, **figures: Any) -> None:
        super().__init__(text)
        self.figures = figures


class Skipped(Exception):
    """A check cannot be made here; its text says why."""


@dataclass(frozen=True)
class Bench:
    """Where a check works.

    Args:
        device: what the models are on.
        folder: an empty folder for the check's files.
        seconds: how long it should take, where it can take more or less.
    """

    device: torch.device
    folder: Path
    seconds: float

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Observation:
    """What a check saw that is right.

    Args:
        text: for people, in a few words.
        figures: what was measured, by name.
    """

    text: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check by name.

    Args:
        name: a group and a name, such as `logps/float32`.
        run: makes the check.
        seconds: how long it takes on a CPU, about; it is not begun with less time left.
    """

    name: str
    run: Callable[[Bench], Observation]
    seconds: float = 5.0


@dataclass(frozen=True)
class Finding:
    """How a check went.

    Args:
        name: of the check.
        status: "ok", "failed" or "skipped".
        text: what was seen, what is wrong, or why it was skipped.
        seconds: how long it took.
        figures: what was measured, by name.
    """

    name: str
    status: Status
    text: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def make(check: Check, bench: Bench) -> Finding:
    """Makes a check; an error in it is a finding, too."""
    began = time.perf_counter()
    status: Status = "ok"
    figures: dict[str, Any] = {}
    try:
        seen = check.run(bench)
        text = seen.text
        figures = seen.figures
    except Skipped as reason:
        status = "skipped"
        text = str(reason)
    except Failed as error:
        status = "failed"
        text = str(error)
        figures = error.figures
    except Exception as error:
        status = "failed"
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        figures = {"traceback": traceback.format_exc()}
    return Finding(check.name, status, text, time.perf_counter() - began, figures)
