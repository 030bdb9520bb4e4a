from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from callbacks import (
    AdaptiveInterval,
    Alternating,
    AlwaysOffPolicy,
    AlwaysOnPolicy,
    ConstantMixture,
    FixedSwitch,
    GainSchedule,
    MixtureBoundary,
)
from lit_align.boundary import BoundaryCallback, BoundaryResult, Decision
from tests.helpers.boundary_fakes import FakeData, FakeModule, quiet_trainer

RISING = [0.1, 0.1, 0.1, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9]


def fit(folder: Path, schedule: BoundaryCallback) -> FakeData:
    data = FakeData(RISING)
    quiet_trainer(folder, schedule, accumulate_grad_batches=2).fit(FakeModule(), datamodule=data)
    return data


def twice(*shares: float) -> list[float]:
    """Two micro-batches an optimizer step."""
    return [share for share in shares for _ in range(2)]


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        (FixedSwitch(at_step=4), twice(0, 0, 0, 0, 1, 1)),
        (FixedSwitch(at_step=0), twice(1, 1, 1, 1, 1, 1)),
        (FixedSwitch(at_step=4, on_policy_first=True), twice(1, 1, 1, 1, 0, 0)),
        (Alternating(period=2), twice(0, 0, 1, 1, 0, 0)),
        (AlwaysOffPolicy(), twice(0, 0, 0, 0, 0, 0)),
        (AlwaysOnPolicy(), twice(1, 1, 1, 1, 1, 1)),
        (ConstantMixture(), twice(0.5, 0.5, 0.5, 0.5, 0.5, 0.5)),
        (ConstantMixture(0.2), twice(0.2, 0.2, 0.2, 0.2, 0.2, 0.2)),
    ],
)
def test_schedules_that_need_no_score_pay_for_none(
    tmp_path: Path, schedule: BoundaryCallback, shares: list[float]
) -> None:
    data = fit(tmp_path, schedule)
    assert data.shares_seen == shares
    assert data.sampled == []
    assert all(not decision.measured for decision in schedule.history)
    assert (tmp_path / "boundary.jsonl").read_text().count("\n") == len(schedule.history)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        (FixedSwitch(at_step=3, every_n_steps=2), twice(0, 0, 0, 1, 1, 1)),
        (Alternating(period=3, every_n_steps=2), twice(0, 0, 0, 1, 1, 1)),
        (AlwaysOffPolicy(every_n_steps=2), twice(0, 0, 0, 0, 0, 0)),
        (AlwaysOnPolicy(every_n_steps=2), twice(1, 1, 1, 1, 1, 1)),
    ],
)
def test_asked_to_they_measure_for_the_record_alone(
    tmp_path: Path, schedule: BoundaryCallback, shares: list[float]
) -> None:
    data = fit(tmp_path, schedule)
    assert data.shares_seen == shares
    assert [step for step, _ in data.sampled] == [0, 2, 4, 6]
    stages = {decision.step: decision.stage for decision in schedule.history if decision.measured}
    assert stages == {0: "injection", 2: "injection", 4: "fine_tuning", 6: "fine_tuning"}, "what was measured"


def test_rounds_are_asked_for_where_on_policy_data_starts(tmp_path: Path) -> None:
    assert fit(tmp_path, Alternating(period=1)).rounds == [1, 3, 5]
    assert fit(tmp_path, FixedSwitch(at_step=3)).rounds == [3]
    assert fit(tmp_path, AlwaysOffPolicy()).rounds == []
    assert fit(tmp_path, ConstantMixture()).rounds == [0], "one that goes on, not one for each decision"


def test_the_mixture_follows_the_score(tmp_path: Path) -> None:
    schedule = MixtureBoundary(width=0.1, every_n_steps=1)
    data = fit(tmp_path, schedule)
    assert data.shares_seen == twice(*[decision.on_policy_share for decision in schedule.history[:6]])
    by_score = sorted((decision.score, decision.on_policy_share) for decision in schedule.history)
    assert by_score == sorted(by_score, key=lambda pair: pair[1]) and 0 < by_score[0][1] < 0.05 < 0.9 < by_score[-1][1]


def test_the_mixture_s_curve() -> None:
    """A score without any doubt."""
    schedule = MixtureBoundary(width=0.05)

    def share(score: float) -> float:
        return schedule.on_policy_share(BoundaryResult(score, score, score, 1, 1, 0, 0), [])

    assert share(0.5) == 0.5
    assert share(0.55) == pytest.approx(0.7310586, abs=1e-6)  # 1 / (1 + exp(-1))
    assert share(0.42) == pytest.approx(1 - share(0.58), abs=1e-12)
    assert 0.0 <= share(0.0) < 1e-4 and 1.0 >= share(1.0) > 1 - 1e-4


def test_doubt_pulls_the_mixture_to_the_middle() -> None:
    """The share is the mean of the curve over a normal spread of a quarter of the interval; by quadrature."""
    schedule, rng = MixtureBoundary(width=0.05), np.random.default_rng(0)
    shares = []
    for half in (0.0, 0.05, 0.1, 0.2):
        share = schedule.on_policy_share(BoundaryResult(0.58, 0.58 - half, 0.58 + half, 9, 5, 4, 0), [])
        scores = 0.58 + half / 2 * rng.standard_normal(200_000)
        assert share == pytest.approx(np.mean(1 / (1 + np.exp(-(scores - 0.5) / 0.05))), abs=0.02)
        shares.append(share)
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1] + 0.1
    assert schedule.on_policy_share(BoundaryResult(0.5, 0.3, 0.7, 9, 5, 4, 0), []) == 0.5


def test_the_adaptive_schedule_measures_often_near_the_boundary(tmp_path: Path) -> None:
    schedule = AdaptiveInterval(every_n_steps=2, near=0.05, max_stretch=3, num_candidates=4)
    data = FakeData([0.1] * 7 + [0.5] * 8 + [0.9] * 8)
    quiet_trainer(tmp_path, schedule, max_steps=22, accumulate_grad_batches=2).fit(FakeModule(), datamodule=data)
    steps = [decision.step for decision in schedule.history]
    scores = [decision.score for decision in schedule.history]
    for step, score, following in zip(steps, scores, steps[1:], strict=False):
        assert score is not None
        assert following == step + round(2 * min(3, 1 + abs(score - 0.5) / 0.05))
    assert steps[:2] == [0, 6] and steps[-1] - steps[-2] <= 6
    assert min(b - a for a, b in pairwise(steps)) <= 3, "it came back sooner near 0.5"


def test_the_adaptive_schedule_goes_on_from_the_decisions_of_a_checkpoint() -> None:
    schedule = AdaptiveInterval(every_n_steps=4, near=0.1, max_stretch=8)
    assert schedule.should_measure(0)
    for score, gap in ((0.5, 4), (0.6, 8), (0.35, 10), (0.0, 24), (1.0, 24)):
        measured = BoundaryResult(score, score, score, 9, 5, 4, 0)
        schedule.history = [Decision(10, "injection", 0.0, "", measured), Decision(12, "injection", 0.0, "by hand")]
        assert next(step for step in range(10, 60) if schedule.should_measure(step)) == 10 + gap
    schedule.max_stretch = 2
    assert schedule.should_measure(18) and not schedule.should_measure(17)


def test_schedules_take_all_that_the_callback_takes() -> None:
    schedule = Alternating(period=3, every_n_steps=5, alpha=0.1, max_share_of_training=0.02)
    assert (schedule.alpha, schedule.budget.max_share, schedule.every_n_steps) == (0.1, 0.02, 5)


@pytest.mark.parametrize(
    ("schedule", "wrong"),
    [
        (MixtureBoundary, {"width": 0.0}),
        (Alternating, {"period": 0}),
        (ConstantMixture, {"share": 1.5}),
        (AdaptiveInterval, {"near": 0}),
    ],
)
def test_arguments_out_of_range_are_named(schedule: type[BoundaryCallback], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        schedule(**wrong)


@pytest.mark.parametrize(
    "schedule",
    [MixtureBoundary, FixedSwitch, Alternating, AlwaysOffPolicy, AdaptiveInterval, ConstantMixture, GainSchedule],
)
def test_the_yaml_in_the_docstring_builds_it(schedule: type[BoundaryCallback]) -> None:
    assert schedule.__doc__ is not None
    snippet = yaml.safe_load(schedule.__doc__.split("```yaml")[1].split("```")[0])["boundary"]
    assert snippet["class_path"] == f"callbacks.{schedule.__name__}"
    schedule(**snippet["init_args"])
