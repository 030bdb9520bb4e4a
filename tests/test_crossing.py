"""What a run's measurements say in sentences: never more than they decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from lit_align.boundary import BoundaryCallback, BoundaryResult, Decision, SequentialTest
from lit_align.boundary.meaning import meaning
from lit_align.boundary.power import prompts_to_decide
from lit_align.boundary.shortage import shortage, val_fraction_for
from lit_align.data import AlignmentDataModule
from lit_align.report.crossing import crossing, for_the_next_run
from tests.helpers.boundary_fakes import FakeData, FakeModule, decision, number_sets, quiet_trainer
from tests.helpers.data_fakes import data_module, pair_rows, write

WIDE = 0.49
OFF, ON = "injection", "fine_tuning"


@pytest.mark.parametrize(
    ("decisions", "crossed", "step", "words"),
    [
        ([], False, None, "not measured"),
        ([decision(0, None, ON)], False, None, "not measured"),
        ([decision(0, 0.6, ON)], False, None, "nothing to cross"),
        ([decision(0, 0.3, OFF), decision(9, 0.42, OFF)], False, None, "highest: score 0.42 at step 9, interval 0.37"),
        (
            [decision(0, 0.3, OFF), decision(9, 0.52, OFF, "0.5 inside")],
            False,
            None,
            "undecided, interval 0.47 to 0.57",
        ),
        ([decision(0, 0.3, OFF), decision(9, 0.52, OFF, "0.5 inside")], False, None, "injection: 0.5 inside."),
        ([decision(0, 0.3, OFF), decision(9, 0.6, ON)], True, 9, "crossed into preference fine-tuning (score 0.60 at"),
        # A switch that no score asked for is no crossing.
        ([decision(0, 0.3, OFF), decision(5, 0.4, ON)], False, None, "did not reach 0.5"),
        ([decision(0, 0.3, OFF), decision(5, 0.6, ON), decision(9, 0.4, OFF)], True, 5, "went back"),
        ([decision(0, 0.75, ON, spread=WIDE)], False, None, "The first measurement was undecided (score 0.75"),
        ([decision(0, 0.75, OFF, "few", WIDE, 1)], False, None, "did not leave preference injection: few."),
        ([decision(0, 0.4, OFF, spread=WIDE)], False, None, "whether the run got there is undecided"),
        ([decision(0, 0.3, OFF), decision(5, 0.6, ON, spread=WIDE)], True, 5, "On an undecided score the run went"),
    ],
)
def test_crossing_is_told_as_it_was(decisions: list[Decision], crossed: bool, step: int | None, words: str) -> None:
    told = crossing(decisions)
    assert (told["crossed"], told["step"]) == (crossed, step)
    assert words in told["text"]
    if any(one.measured and not one.decided for one in decisions):
        assert "undecided" in told["text"] and "The run began in preference fine-tuning" not in told["text"]


def result(score: float, low: float, high: float, prompts: int = 100, **more: Any) -> BoundaryResult:
    return BoundaryResult(score, low, high, prompts, **{"votes_on": 2, "votes_off": 2, "ties": 0, **more})


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (
            result(0.02, 0.0, 0.1),
            "0.02: the static answers win 98 of 100 votes; static pairs (off-policy) teach it more than its own "
            "answers.",
        ),
        (result(0.83, 0.7, 0.9, ties=3), "0.83: the policy's own answers win 83 of 100 votes, ties half a vote; pairs"),
        (result(0.83, 0.7, 0.9, graded=True), "0.83: by margins the policy's own answers are ahead; pairs of its own"),
        (result(0.4, 0.3, 0.55), "0.40, undecided: the static answers win 60 of 100 votes, but 100 prompts leave 0.5"),
        (result(0.4, 0.3, 0.55), "The better guess: static pairs (off-policy) teach it more than its own answers. To"),
        (result(0.4, 0.3, 0.55, method="betting"), "To decide such a score takes about 120 prompts."),
        (result(0.75, 0.01, 1.0, 1), "1 prompt leaves 0.5 inside the interval (0.01 to 1.00). On fewer than 32"),
        (result(0.5, 0.4, 0.6), "0.50, undecided: both sides win half of the votes, but 100 prompts leave 0.5 inside"),
        (result(0.49, 0.4, 0.55), "So near 0.5 it takes thousands of prompts to decide."),
        (result(0.5, 0.4, 0.6, votes_on=0, votes_off=0, ties=40), "Undecided: all 40 votes are ties, so the score"),
    ],
)  # fmt: skip
def test_a_measurement_in_words(measured: BoundaryResult, words: str) -> None:
    assert words in meaning(measured)


def test_the_next_run_is_told_the_last_measurement() -> None:
    history = [decision(0, 0.3, OFF), decision(9, 0.8, ON), decision(12, None, OFF)]
    told = for_the_next_run(history, ("A", "B"))
    assert told.startswith("For the next run, as measured at step 9: 0.80: A win 80 of 100 votes; pairs of its own")
    assert "`lit-align measure` with its config says which" in for_the_next_run([decision(0, None, ON)])


def test_the_fewest_prompts_are_those_of_the_test_itself() -> None:
    for alpha in (0.01, 0.05, 0.2):
        fewest = prompts_to_decide(1.0, alpha)
        tests = [SequentialTest(alpha) for _ in range(2)]
        for test, prompts in zip(tests, (fewest - 1, fewest), strict=True):
            test.update([1.0] * prompts)
        assert [test.decided for test in tests] == [False, True] and prompts_to_decide(0.0, alpha) == fewest
    numbers = [prompts_to_decide(score) for score in (0.2, 0.3, 0.4, 0.45)]
    assert numbers == [17, 33, 120, 512] == [prompts_to_decide(1 - score) for score in (0.2, 0.3, 0.4, 0.45)][::1]
    assert prompts_to_decide(0.4, sequential=False) < 120 and prompts_to_decide(1.0, sequential=False) == 5


def short_of(there: int, max_prompts: int = 2000, rows: int | None = None) -> str | None:
    data = cast(Any, FakeData(prompts=there))
    if rows is not None:  # a share of them is held out, and nothing is set apart for the evaluation
        data.val, data.sampler, data.train_sets, data.held_out = None, None, [None] * rows, []
    return shortage(data, max_prompts, 0.05, True)


def test_the_console_says_how_many_prompts_a_decision_takes() -> None:
    takes = "a decision takes at least 10 where all votes agree, and about 120 at a score of 0.4"
    assert short_of(120) is None
    assert short_of(1, rows=20) == (
        f"1 prompt to measure on can decide nothing: {takes}. `data.val_fraction: 0.5` gives 10, more held-out rows "
        "give more."
    )
    few = f"64 prompts to measure on are few: {takes}."
    assert short_of(64, rows=345) == f"{few} `data.val_fraction: 0.35` gives 120."
    assert short_of(64) == f"{few} More held-out rows give more."
    assert short_of(500, max_prompts=64) == f"{few} `boundary.max_prompts: 120` lets it take so many."


def test_prompts_that_are_alike_count_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, callback = FakeData([0.9] * 9, prompts=40), BoundaryCallback(every_n_steps=1)
    data.groups = {f"prompt {n}": str(n // 8) for n in range(40)}
    quiet_trainer(tmp_path, callback, max_steps=1).fit(FakeModule(), datamodule=data)
    assert callback.history[0].prompts == 5 and not callback.history[0].decided
    assert [decision.stage for decision in callback.history] == ["injection"] * 2
    groups = [{data.groups[prompt] for prompt in prompts} for _, prompts in data.sampled]
    assert groups == [set("01234")] * 2 and all(len(prompts) == 5 for _, prompts in data.sampled)
    assert capsys.readouterr().out.count("boundary: 5 prompts to measure on can decide nothing") == 1


@pytest.mark.parametrize("total", [20, 40, 41, 99, 400])
def test_the_val_fraction_that_is_named_gives_the_prompts(tmp_path: Path, total: int) -> None:
    rows = write(tmp_path / "rows.jsonl", pair_rows(total))

    def split(fraction: float) -> AlignmentDataModule:
        return data_module(rows, val_fraction=fraction)

    fraction = val_fraction_for(split(0.05), 10)
    if total == 20:
        held_out = write(
            tmp_path / "val.jsonl", [{**row, "prompt": f"held out {n}"} for n, row in enumerate(pair_rows(9))]
        )
        assert fraction is None and val_fraction_for(data_module(rows, val=held_out), 1) is None
    else:
        assert fraction is not None and len(split(fraction).measured_on) in (10, 11)
        assert len(split(fraction - 0.05).measured_on) < 10


def test_without_static_pairs_a_few_prompts_do_not_ask_for_them(tmp_path: Path) -> None:
    data, callback = FakeData([0.1] * 9, prompts=4), BoundaryCallback(every_n_steps=9)
    data.train_pairs = []
    quiet_trainer(tmp_path, callback, max_steps=1).fit(FakeModule(), datamodule=data)
    assert (callback.history[0].stage, callback.history[0].on_policy_share) == ("fine_tuning", 1.0)
    assert "undecided, on 4 prompts, without static pairs" in callback.history[0].reason
    assert number_sets(4) == data.measured_on
