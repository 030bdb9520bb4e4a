"""Where the main thread of this process is, and since when; another thread asks."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

_COLLECTIVES = ("/torch/distributed/", "/torch/nn/parallel/distributed.py", "/torch/autograd/graph.py")
_LIBRARIES = tuple(sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "purelib", "platlib"))


@dataclass(frozen=True)
class Pulse:
    """What a rank reports of its main thread.

    Args:
        still: seconds for which it has stood at one place.
        waits: whether that place is a collective, where it waits for other ranks.
        where: the place, for people.
    """

    still: float
    waits: bool
    where: str


class MainThread:
    """Remembers where the main thread was when it looked last."""

    def __init__(self) -> None:
        self._signature: tuple[Any, ...] = ()
        self._since = time.monotonic()

    def look(self) -> Pulse:
        """Looks at it now."""
        frames = _main_frames()
        signature = tuple((id(frame.f_code), frame.f_lasti) for frame in frames)
        now = time.monotonic()
        if signature != self._signature:
            self._signature = signature
            self._since = now
        innermost = frames[0].f_code.co_filename.replace(os.sep, "/") if frames else ""
        return Pulse(now - self._since, any(part in innermost for part in _COLLECTIVES), _name(frames))


def _main_frames() -> list[FrameType]:
    """The frames of the main thread, the innermost first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _name(frames: list[FrameType]) -> str:
    """The innermost function outside of libraries, which is what a user can look into."""
    if not frames:
        return "no Python code"
    own = (frame for frame in frames if _is_own(frame.f_code.co_filename))
    frame = next(own, frames[0])
    return f"{frame.f_code.co_name} ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"


def _is_own(file: str) -> bool:
    return not file.startswith((*_LIBRARIES, "<")) or f"{os.sep}lit_align{os.sep}" in file
