"""Where the wall time of a run goes: named activities, each without those inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Clock:
    """Adds up wall time by activity, for this process.

    An activity inside another has a path, such as `measuring/judging`, and its time is not the outer one's.

    Attributes:
        seconds: by path, those that have ended.

    Example:
        >>> clock = Clock()
        >>> with clock.timed("measuring"):
        ...     with clock.timed("judging"):
        ...         pass
        >>> sorted(clock.seconds)
        ['measuring', 'measuring/judging']
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begins a run."""
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._began = perf_counter()
        self._since = self._began

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return perf_counter() - self._began

    @property
    def unnamed(self) -> float:
        """Seconds in no activity that has ended."""
        return max(0.0, self.elapsed - sum(self.seconds.values()))

    def begin(self, activity: str) -> None:
        """Begins an activity; the time until now is that of the one around it."""
        self._count()
        self._open.append(activity)

    def end(self) -> None:
        """Ends the innermost activity; does nothing where a restart has ended it."""
        self._count()
        if self._open:
            self._open.pop()

    def add(self, activity: str, seconds: float) -> None:
        """Adds time to an activity."""
        self.seconds[activity] = self.seconds.get(activity, 0.0) + seconds

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Times a block, or as a decorator each call of a function."""
        self.begin(activity)
        try:
            yield
        finally:
            self.end()

    def _count(self) -> None:
        now = perf_counter()
        if self._open:
            self.add("/".join(self._open), now - self._since)
        self._since = now


CLOCK = Clock()
"""That of the run of this process; `AlignmentTrainer.fit` restarts it."""
timed = CLOCK.timed
