from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks import Alternating, AlwaysOffPolicy, AlwaysOnPolicy, FixedSwitch, MixtureBoundary
from lit_align.boundary import BoundaryCallback
from tests.boundary_fakes import FakeData, FakeModule, quiet_trainer

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
        (Alternating(period=2), twice(0, 0, 1, 1, 0, 0)),
        (AlwaysOffPolicy(), twice(0, 0, 0, 0, 0, 0)),
        (AlwaysOnPolicy(), twice(1, 1, 1, 1, 1, 1)),
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


def test_the_mixture_follows_the_score(tmp_path: Path) -> None:
    schedule = MixtureBoundary(width=0.1, every_n_steps=1)
    data = fit(tmp_path, schedule)
    assert data.shares_seen == twice(*[decision.on_policy_share for decision in schedule.history[:6]])
    by_score = sorted((decision.score, decision.on_policy_share) for decision in schedule.history)
    assert by_score == sorted(by_score, key=lambda pair: pair[1]) and 0 < by_score[0][1] < 0.05 < 0.9 < by_score[-1][1]


def test_the_mixture_s_curve() -> None:
    schedule = MixtureBoundary(width=0.05)

    def share(score: float) -> float:
        from lit_align.boundary import BoundaryResult

        return schedule.on_policy_share(BoundaryResult(score, 0, 1, 1, 0, 0, 0), [])

    assert share(0.5) == 0.5
    assert share(0.55) == pytest.approx(0.7310586, abs=1e-6)  # 1 / (1 + exp(-1))
    assert share(0.42) == pytest.approx(1 - share(0.58), abs=1e-12)
    assert 0.0 <= share(0.0) < 1e-4 and 1.0 >= share(1.0) > 1 - 1e-4


@pytest.mark.parametrize(("schedule", "wrong"), [(MixtureBoundary, {"width": 0.0}), (Alternating, {"period": 0})])
def test_arguments_out_of_range_are_named(schedule: type[BoundaryCallback], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        schedule(**wrong)


@pytest.mark.parametrize("schedule", [MixtureBoundary, FixedSwitch, Alternating, AlwaysOffPolicy])
def test_the_yaml_in_the_docstring_builds_it(schedule: type[BoundaryCallback]) -> None:
    assert schedule.__doc__ is not None
    snippet = yaml.safe_load(schedule.__doc__.split("```yaml")[1].split("```")[0])["boundary"]
    assert snippet["class_path"] == f"{schedule.__module__}.{schedule.__name__}"
    schedule(**snippet["init_args"])
