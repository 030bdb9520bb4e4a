from __future__ import annotations

import pickle
from typing import Any

import pytest

from lit_align.boundary import BoundaryResult, Choice, Decision, Switch
from lit_align.boundary.switch import as_decision
from lit_align.records import Stage

OFF, ON = Stage.INJECTION, Stage.FINE_TUNING


def measured(score: float, sure: bool = True, prompts: int = 32) -> BoundaryResult:
    """A result whose interval holds 0.5 unless it is sure."""
    reach = abs(score - 0.5) / 2 if sure else 0.3
    return BoundaryResult(score, score - reach, score + reach, prompts, votes_on=1, votes_off=1, ties=0)


def play(switch: Switch, *results: BoundaryResult) -> list[Decision]:
    history: list[Decision] = []
    for step, result in enumerate(results):
        history.append(as_decision(step, result, switch.choose(result, history)))
    return history


SURE_OFF, SURE_ON = measured(0.3), measured(0.7)
DIM_OFF, DIM_ON = measured(0.45, sure=False), measured(0.55, sure=False)
FEW_ON, FEW_OFF = measured(0.75, sure=False, prompts=31), measured(0.3, sure=False, prompts=1)
TABLE: list[tuple[dict[str, Any], list[BoundaryResult], list[float]]] = [
    # the paper: below 0.5 off-policy, from 0.5 on on-policy
    ({}, [SURE_OFF, SURE_ON, SURE_OFF], [0, 1, 0]),
    ({}, [measured(0.499, sure=False), measured(0.5, sure=False)], [0, 1]),
    # the first measurement takes the better guess, whatever the rest says
    ({"patience": 3, "hysteresis": 0.2}, [DIM_ON], [1]),
    ({"patience": 3, "hysteresis": 0.2}, [DIM_OFF], [0]),
    # undecided on few prompts: the paper's order at first, then no change
    ({}, [FEW_ON, FEW_ON, DIM_ON, FEW_OFF, DIM_OFF], [0, 0, 1, 1, 0]),
    ({"patience": 2}, [SURE_OFF, SURE_ON, FEW_ON, SURE_ON, SURE_ON], [0, 0, 0, 0, 1]),
    ({}, [measured(0.75, prompts=10)], [1]),
    # undecided: follow or stay
    ({}, [SURE_OFF, DIM_ON, SURE_ON, DIM_OFF], [0, 1, 1, 0]),
    ({"undecided": "stay"}, [SURE_OFF, DIM_ON, SURE_ON, DIM_OFF], [0, 0, 1, 1]),
    # hysteresis: leave only if 0.5 is passed by h, and then come back only the same way
    ({"hysteresis": 0.1}, [SURE_OFF, measured(0.58), measured(0.6), measured(0.42), measured(0.39)], [0, 0, 1, 1, 0]),
    ({"hysteresis": 0.1}, [SURE_OFF, DIM_ON, measured(0.61, sure=False)], [0, 0, 1]),
    # patience: so many in a row, and a break starts the count again
    ({"patience": 2}, [SURE_OFF, SURE_ON, SURE_ON], [0, 0, 1]),
    ({"patience": 2}, [SURE_OFF, SURE_ON, SURE_OFF, SURE_ON, SURE_ON], [0, 0, 0, 0, 1]),
    ({"patience": 2, "undecided": "stay"}, [SURE_OFF, SURE_ON, DIM_ON, SURE_ON, SURE_ON], [0, 0, 0, 0, 1]),
    ({"patience": 2, "hysteresis": 0.1}, [SURE_OFF, SURE_ON, measured(0.55), SURE_ON, SURE_ON], [0, 0, 0, 0, 1]),
    ({"patience": 3}, [SURE_ON, SURE_OFF, SURE_OFF, SURE_OFF, SURE_ON, SURE_ON, SURE_ON], [1, 1, 1, 0, 0, 0, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "results", "shares"), TABLE)
def test_the_share_after_each_measurement(
    arguments: dict[str, Any], results: list[BoundaryResult], shares: list[float]
) -> None:
    decisions = play(Switch(**arguments), *results)
    assert [d.on_policy_share for d in decisions] == shares
    assert [d.stage for d in decisions] == [(ON if share else OFF).value for share in shares]


def test_decisions_without_a_score_do_not_count_as_asking() -> None:
    history = play(Switch(patience=2), SURE_OFF, SURE_ON)
    history.append(as_decision(2, None, Choice(0.0, "by hand")))
    assert Switch(patience=2).choose(SURE_ON, history).share == 1


@pytest.mark.parametrize(
    ("arguments", "results", "says"),
    [
        ({}, [SURE_OFF], "first measurement"),
        ({}, [DIM_ON], "first measurement, undecided"),
        ({}, [FEW_ON], "first measurement, undecided on fewer than 32 prompts: injection first"),
        ({}, [SURE_OFF, FEW_ON], "stays: undecided on fewer than 32 prompts"),
        ({}, [SURE_ON, FEW_ON], "stays: the score is on the side of fine-tuning, undecided"),
        ({}, [SURE_ON, DIM_ON], "stays: the score is on the side of fine-tuning, undecided"),
        ({"hysteresis": 0.1}, [SURE_OFF, DIM_ON], "stays: within 0.1 of 0.5, undecided"),
        ({"patience": 2}, [SURE_OFF, DIM_ON], "1 of 2 measurements in a row ask for the change, undecided"),
        ({}, [SURE_OFF, SURE_OFF], "on the side of injection"),
        ({"undecided": "stay"}, [SURE_OFF, DIM_ON], "undecided"),
        ({}, [SURE_OFF, DIM_ON], "injection to fine-tuning, undecided"),
        ({"hysteresis": 0.3}, [SURE_OFF, SURE_ON], "within 0.3 of 0.5"),
        ({"patience": 2}, [SURE_OFF, SURE_ON], "1 of 2 measurements"),
        ({}, [SURE_OFF, SURE_ON], "crossed 0.5: from injection to fine-tuning"),
    ],
)
def test_the_reason_says_what_decided(arguments: dict[str, Any], results: list[BoundaryResult], says: str) -> None:
    assert says in play(Switch(**arguments), *results)[-1].reason


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"hysteresis": 0.5}, {"hysteresis": -0.1}, {"undecided": "leave"}])
def test_arguments_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Switch(**wrong)


def test_a_choice_without_a_stage_takes_the_measured_one() -> None:
    assert as_decision(5, SURE_OFF, Choice(0.9, "x")).stage == "injection"
    assert as_decision(5, None, Choice(0.9, "x")).stage == "fine_tuning"
    assert as_decision(5, DIM_OFF, Choice(0.9, "my schedule")).reason == "my schedule, undecided"
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5 at step 5"):
        as_decision(5, None, Choice(1.5, "x"))


def test_a_decision_shows_its_measurement_and_is_read_back_whole() -> None:
    decided = as_decision(3, SURE_ON, Choice(1.0, "x"), 0.25)
    assert (decided.score, decided.low, decided.high) == (SURE_ON.score, SURE_ON.low, SURE_ON.high)
    by_hand = as_decision(4, None, Choice(0.25, "by hand"))
    assert by_hand.score is None and by_hand.low is None and not by_hand.measured
    with pytest.raises(AttributeError, match="'Decision' object has no attribute 'scores'"):
        _ = decided.scores
    for decision in (decided, by_hand):
        assert Decision.from_record(decision.record()) == pickle.loads(pickle.dumps(decision)) == decision
    assert by_hand.record().keys() == decided.record().keys()


def test_another_threshold_moves_the_switch_and_its_words() -> None:
    def measured(score: float) -> BoundaryResult:
        return BoundaryResult(score, score - 0.05, score + 0.05, 64, 3, 3, 0, threshold=0.4)

    assert measured(0.42).stage is Stage.FINE_TUNING and measured(0.38).stage is Stage.INJECTION
    assert not measured(0.42).decided and measured(0.46).decided
    first = as_decision(0, measured(0.3), Switch().choose(measured(0.3), []))
    assert (first.stage, first.threshold) == ("injection", 0.4)
    crossed = Switch().choose(measured(0.46), [first])
    assert crossed.share == 1 and crossed.reason == "crossed 0.4: from injection to fine-tuning"
    within = Switch(hysteresis=0.1).choose(measured(0.46), [first])
    assert within.share == 0 and within.reason == "stays: within 0.1 of 0.4"
    assert "0.4 is inside" in Switch(undecided="stay").choose(measured(0.42), [first]).reason
    assert Decision.from_record(first.record()) == first
