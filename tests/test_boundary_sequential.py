"""The sequential test: its numbers by hand, its identities, and its error rates in simulation."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lit_align.boundary import SequentialTest
from lit_align.records import Stage

BETS = [(k + 0.5) / 32 for k in range(32)]
WEIGHTS = [2 * (1 - c) / 32 for c in BETS]  # the midpoints of 1 - c over [0, 1] sum to 1/2 * 32


def after(*shares: float, alpha: float = 0.05) -> SequentialTest:
    test = SequentialTest(alpha)
    test.update(list(shares))
    return test


def capital(shares: list[float], mean: float) -> float:
    """Against "the mean is at most `mean`", multiplied out."""
    return sum(w * math.prod(1 + c * (x / mean - 1) for x in shares) for c, w in zip(BETS, WEIGHTS, strict=True))


def test_the_weights_are_a_distribution() -> None:
    assert sum(WEIGHTS) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_wins_alone_decide_where_the_capital_multiplied_out_does(share: float) -> None:
    """n shares of 1 multiply a bet c by (1 + c)^n.

    The mixture over 2 (1 - c) is then worth 2 (2 (2^(n+1) - 1) / (n + 1) - (2^(n+2) - 1) / (n + 2)): 37.0 after 9, 61.9
    after 10; 40 are needed.
    """
    needed = next(n for n in range(1, 100) if capital([1.0] * n, 0.5) >= 2 / 0.05)
    assert needed == 10
    assert not after(*[share] * (needed - 1)).decided
    test = after(*[share] * needed)
    assert test.decided and test.stage is (Stage.FINE_TUNING if share else Stage.INJECTION)


def test_the_ends_of_the_interval_are_where_the_capital_reaches_its_threshold() -> None:
    shares = [0.75, 1.0, 0.5, 0.25, 1.0, 0.75, 1.0, 0.6, 0.1]
    low, high = after(*shares).interval
    assert capital(shares, low) == pytest.approx(2 / 0.05, rel=1e-9)
    assert capital([1 - x for x in shares], 1 - high) == pytest.approx(2 / 0.05, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_decided_means_that_0_5_is_outside_of_an_interval_that_holds_the_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    test = SequentialTest(alpha=0.3)
    for _ in range(30):
        test.update(rng.binomial(4, 0.35 + 0.03 * seed, 3) / 4)
        low, high = test.interval
        assert 0 <= low <= test.score <= high <= 1
        assert test.decided == (not low <= 0.5 <= high)
        assert not test.decided or (test.score > 0.5) == (low > 0.5)


def test_neither_order_nor_batches_matter() -> None:
    shares = np.random.default_rng(0).random(60)
    whole, parts = after(*shares), SequentialTest()
    for part in np.split(np.sort(shares)[::-1], [1, 2, 30]):
        parts.update(part)
    parts.update([])
    assert parts.n == whole.n == 60
    assert parts.score == pytest.approx(whole.score, abs=1e-15)
    assert parts.interval == pytest.approx(whole.interval, abs=1e-12)


def test_swapping_the_sides_mirrors_everything() -> None:
    shares = [0.1, 0.25, 0.25, 0.5, 0.0, 0.75, 0.0]
    one, other = after(*shares), after(*[1 - x for x in shares])
    assert one.interval == pytest.approx(tuple(1 - end for end in reversed(other.interval)), abs=1e-12)
    assert one.decided == other.decided and one.stage is not other.stage


@pytest.mark.parametrize("shares", [[1.0] * 2000, [0.0] * 2000, [0.5] * 2000, [0.0, 1.0] * 1000, [1e-9] * 50])
def test_extremes_stay_finite(shares: list[float]) -> None:
    test = after(*shares, alpha=1e-12)
    low, high = test.interval
    assert 0 <= low <= test.score <= high <= 1 and high - low < 0.5
    assert test.decided == (abs(test.score - 0.5) > 0.4)


def test_before_the_first_prompt() -> None:
    test = SequentialTest()
    assert (test.n, test.decided, test.interval) == (0, False, (0.0, 1.0))
    with pytest.raises(ValueError, match="no prompt yet"):
        _ = test.score


@pytest.mark.parametrize("wrong", [math.nan, -0.01, 1.01, math.inf])
def test_a_share_that_is_none_is_refused_and_nothing_of_its_batch_is_taken(wrong: float) -> None:
    test = after(0.5)
    with pytest.raises(ValueError, match=r"shares of cross votes in \[0, 1\], got"):
        test.update([0.5, wrong])
    assert test.n == 1


@pytest.mark.parametrize("alpha", [0.0, 1.0, 95])
def test_an_alpha_out_of_range_is_named(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        SequentialTest(alpha)


# -- the benchmark, small


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    folder = str(Path(__file__).resolve().parent.parent / "benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return importlib.import_module("sequential")


@pytest.mark.parametrize("spread", ["all prompts alike", "mixed prompts", "mostly one-sided"])
def test_the_paper_s_trajectory_takes_at_most_320_prompts(benchmark: ModuleType, spread: str) -> None:
    kind = benchmark.SPREADS[spread]
    assert kind.votes == 4
    found = [benchmark.simulate(score, kind, 300, 1000, 32, 0.05, 1) for score in benchmark.TRAJECTORY]
    assert sum(one.prompts for one in found) <= 320
    assert all(one.wrong == 0 for one in found)


@pytest.mark.parametrize("score", [0.3, 0.45, 0.5, 0.55])
@pytest.mark.parametrize("spread", ["mixed prompts", "one vote per prompt"])
def test_errors_stay_below_alpha(benchmark: ModuleType, score: float, spread: str) -> None:
    """At alpha 0.2, so that 300 simulations can tell; two-sided it is nearly used up, so the bound is not idle."""
    found = benchmark.simulate(score, benchmark.SPREADS[spread], 300, 500, 10, 0.2, 2)
    assert found.wrong <= (0.2 if score == 0.5 else 0.1)
    assert 0.8 <= found.covered_always <= found.covered_at_stop
    assert found.covered_always < 0.97


def test_near_duplicates_break_the_promise(benchmark: ModuleType) -> None:
    """Why a measurement takes one of each group of prompts that are alike."""
    missed = [
        1 - benchmark.simulate(0.4, benchmark.Spread(4, 2.0, alike), 400, 1000, 32, 0.05, 5).covered_always
        for alike in (1, 8)
    ]
    assert missed[0] < 0.05 and 0.12 < missed[1] < 0.3


def test_the_benchmark_does_what_the_class_does(benchmark: ModuleType) -> None:
    """One measurement of it, share by share, through the class."""
    spread = benchmark.Spread(4, 2.0)
    rng = np.random.default_rng([3, 400, 4])
    votes = rng.binomial(4, rng.beta(0.8, 1.2, (1, 200)), (1, 200))[0]
    test, prompts = SequentialTest(), 0
    while prompts < 200 and not test.decided:
        test.update(votes[prompts : prompts + 16] / 4)
        prompts = test.n
    low, high = test.interval
    found = benchmark.simulate(0.4, spread, 1, 200, 16, 0.05, 3)
    assert (found.prompts, found.undecided) == (prompts, float(not test.decided))
    assert found.covered_at_stop == float(low <= 0.4 <= high)


@pytest.mark.parametrize("threshold", [0.2, 0.37, 0.8])
def test_another_threshold_is_tested_on_both_sides(threshold: float) -> None:
    """The interval is that of the same shares, and `decided` says whether the threshold is outside of it."""
    rng = np.random.default_rng(0)
    decided = set()
    for mean in (0.01, 0.2, 0.37, 0.5, 0.8, 0.99):
        shares = (rng.random(200) < mean).astype(float)
        plain, moved = SequentialTest(), SequentialTest(threshold=threshold)
        plain.update(shares)
        moved.update(shares)
        assert moved.interval == pytest.approx(plain.interval, abs=1e-9)
        low, high = moved.interval
        assert moved.decided == (not low <= threshold <= high)
        decided.add((moved.decided, moved.stage))
    assert {(True, Stage.INJECTION), (True, Stage.FINE_TUNING)} <= decided
    with pytest.raises(ValueError, match="threshold"):
        SequentialTest(threshold=1.0)
