"""The time that goes into measuring, with a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer

from lit_align.boundary import BoundaryCallback, MeasurementOutcome, MeasuringBudget
from tests.helpers.boundary_fakes import FakeData, FakeModule, quiet_trainer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_affordable_by_hand() -> None:
    clock = Clock()
    budget = MeasuringBudget(0.1, clock)
    budget.start()
    assert budget.affords() and budget.share is None, "the first is always taken"
    clock.now += 4
    budget.spend(4)
    clock.now += 79.9
    assert not budget.affords(), "4 + 4 s on 79.9 s of training are over a tenth"
    clock.now += 0.2
    assert budget.affords() and budget.share == pytest.approx(4 / 80.1)
    clock.now += 2
    budget.spend(2)  # a quicker one: the next is expected to take as long
    assert budget.affords() and budget.training == pytest.approx(80.1), "4 + 2 + 2"
    clock.now += 3
    budget.spend(3)
    assert not budget.affords()


def test_without_a_limit_it_only_counts() -> None:
    clock = Clock()
    budget = MeasuringBudget(None, clock)
    budget.start()
    clock.now += 5
    budget.spend(4)
    assert budget.affords() and budget.share == 4.0


def test_the_count_goes_on_through_a_resume() -> None:
    first, second = Clock(), Clock()
    budget = MeasuringBudget(0.5, first)
    budget.start()
    first.now += 30
    budget.spend(10)
    resumed = MeasuringBudget(0.5, second)
    resumed.load_state_dict(budget.state_dict())
    second.now += 1000  # a pause before the fit goes on is no training
    resumed.start()
    second.now += 19
    assert (resumed.training, resumed.measuring, resumed.affords()) == (39, 10, False)
    second.now += 1
    assert resumed.affords()


class Timed(BoundaryCallback):
    """Each step takes 10 s and each measurement 3 s, by the test's clock."""

    def __init__(self, clock: Clock, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clock = clock
        self.budget = MeasuringBudget(self.budget.max_share, clock)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> MeasurementOutcome:
        self.clock.now += 3
        return super().measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.clock.now += 10
        super().on_train_batch_end(trainer, pl_module, *rest)


def timed_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, schedule: type[Timed] = Timed, accumulate: int = 1, **kwargs: Any
) -> Timed:
    clock = Clock()
    monkeypatch.setattr("lit_align.boundary.callback.perf_counter", clock)
    callback = schedule(clock, **{"every_n_steps": 1, **kwargs})
    trainer = quiet_trainer(folder, callback, max_steps=10, accumulate_grad_batches=accumulate)
    trainer.fit(FakeModule(), datamodule=FakeData([0.1] * 11))
    return callback


def test_a_due_measurement_waits_until_its_time_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = timed_fit(tmp_path, monkeypatch, max_share_of_training=0.1)
    # 3 s each: the one at step 0 is free, the second takes 60 s of training, the third 90.
    assert [decision.step for decision in callback.history] == [0, 6, 9]
    assert [decision.seconds for decision in callback.history] == [3.0, 3.0, 3.0]
    shares = [decision.share_of_training for decision in callback.history]
    assert shares == [None, pytest.approx(6 / 60), pytest.approx(9 / 90)]
    said = [line for line in capsys.readouterr().out.splitlines() if "not measured" in line]
    assert [line.split(" | ")[0] for line in said] == ["boundary: step 1"], "said once"
    assert "3 s more would be over 10 % of the training time" in said[0]


def test_inside_an_accumulation_nothing_is_measured_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 + 3 s are there after 40 s of training, in the middle of the second step of 3 x 10 s: it waits for its end."""
    callback = timed_fit(tmp_path, monkeypatch, accumulate=3, max_share_of_training=0.15)
    assert [decision.step for decision in callback.history][:2] == [0, 2]


def test_a_schedule_without_scores_decides_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_align.boundary import Choice

    class ByStep(Timed):
        def decide(self, step: int, result: Any, history: Any) -> Choice:
            return Choice(0.0, "by step")

    callback = timed_fit(tmp_path, monkeypatch, ByStep, max_share_of_training=0.1)
    assert [decision.step for decision in callback.history] == list(range(11))
    assert [decision.step for decision in callback.history if decision.measured] == [0, 6, 9]


def test_the_time_is_in_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = timed_fit(tmp_path, monkeypatch)
    resumed = Timed(Clock())
    resumed.load_state_dict(callback.state_dict())
    assert (resumed.budget.training, resumed.budget.measuring) == (100.0, 33.0)


def test_a_limit_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="max_share_of_training"):
        MeasuringBudget(-0.1)


def test_a_schedule_that_hands_on_the_paper_s_decision_waits_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watching(Timed):
        def decide(self, step: int, result: Any, history: Any) -> Any:
            return super().decide(step, result, history)

    callback = timed_fit(tmp_path, monkeypatch, Watching, max_share_of_training=0.1)
    assert [decision.step for decision in callback.history] == [0, 6, 9]
