"""Time by activity: each second counts once, whatever is inside what."""

from __future__ import annotations

import pytest

from lit_align import clock as clock_module
from lit_align.clock import Clock


class Ticks:
    """A clock that stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr(clock_module, "perf_counter", ticks)
    return ticks


def test_time_belongs_to_the_innermost_activity(ticks: Ticks) -> None:
    clock = Clock()
    ticks.now = 1.0
    for _ in range(2):
        with clock.timed("measuring"):
            ticks.now += 2
            with clock.timed("sampling"):
                ticks.now += 10
            ticks.now += 3
    assert clock.seconds == {"measuring": 10.0, "measuring/sampling": 20.0}
    assert (clock.elapsed, clock.unnamed) == (31.0, 1.0)


def test_an_error_ends_what_it_leaves_and_a_restart_all(ticks: Ticks) -> None:
    clock = Clock()

    @clock.timed("judging")
    def fail() -> None:
        ticks.now += 4
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    ticks.now += 5
    assert (clock.seconds, clock.unnamed) == ({"judging": 4.0}, 5.0)
    with clock.timed("measuring"):
        clock.restart()
        ticks.now += 1
    assert (clock.seconds, clock.elapsed) == ({}, 1.0)
