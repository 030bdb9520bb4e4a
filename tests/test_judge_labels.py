"""A judge that turns the data's own labels round is called worse than a coin, wherever labels are at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_align import RuleJudge
from lit_align.boundary import BoundaryCallback
from lit_align.data.judging import agreement, labels_by_prompt
from lit_align.judges import Comparison, Judge, PairwiseJudge
from lit_align.records import Candidate, CandidateSet, Message, PreferencePair
from tests.helpers.boundary_fakes import FakeData, FakeModule, quiet_trainer
from tests.helpers.data_fakes import data_module, write

PROMPT = (Message("user", "q"),)


def scored(*scores: float | None) -> CandidateSet:
    return CandidateSet(PROMPT, tuple(Candidate(f"answer {n}", score=score) for n, score in enumerate(scores)))


def test_what_data_say_of_two_answers() -> None:
    pair = PreferencePair(PROMPT, Candidate("good"), Candidate("bad"))
    assert labels_by_prompt([pair, scored(1.0, 3.0, None, 2.0)]) == {
        PROMPT: [("good", "bad"), ("answer 1", "answer 0")]
    }
    assert labels_by_prompt([scored(), scored(None, None), scored(2.0, 2.0)]) == {PROMPT: []}
    labels = [("answer 1", "answer 0"), ("answer 0", "answer 1"), ("answer 0", "answer 0"), ("answer 0", "none")]
    assert agreement(labels, scored(1.0, 2.0)) == [1.0, 0.0, 0.5]
    assert agreement(labels[:1], scored(None, 2.0)) == agreement(labels[:1], scored(float("nan"), 2.0)) == []


def test_relabelling_tells_a_judge_that_turns_the_labels_round(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"q{n}", "chosen": "a kind answer", "rejected": "no"} for n in range(12)]
    rows += [
        {"prompt": f"s{n}", "candidates": [{"text": "x", "score": 1}, {"text": "yy", "score": 2}]} for n in range(12)
    ]
    path = write(tmp_path / "rows.jsonl", rows)

    def load(rule: Callable[[str], float]) -> None:
        data_module(path, judge=RuleJudge(lambda _, texts, row: [rule(text) for text in texts]), relabel=True)

    with pytest.warns(UserWarning, match=r"contradicts the data's labels: it is right in 0 % .* of 24 labelled pairs"):
        load(lambda text: -len(text))
    for rule in (len, lambda text: 1.0, lambda text: float(text[0] in "ay") - len(text) / 99):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load(rule)
        assert not [entry for entry in caught if "contradicts" in str(entry.message)]


class Compares(PairwiseJudge):
    """P(first wins) is high where the first number is, or where it is not."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def compare(self, comparisons: Any) -> list[float]:
        return [self._p(comparison) for comparison in comparisons]

    def _p(self, comparison: Comparison) -> float:
        return 0.5 + 0.5 * self.sign * (2 * (float(comparison.first) > float(comparison.second)) - 1)


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_measurement_holds_its_judge_against_the_labels(
    tmp_path: Path, pairwise: bool, sign: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data, callback = FakeData([0.5] * 9, prompts=40), BoundaryCallback(every_n_steps=1, sequential=False)
    judge: Judge = RuleJudge(lambda prompt, texts, row: [sign * float(text) for text in texts])
    data.judge = Compares(sign) if pairwise else judge
    data.labels = {one.prompt: [("4.0", "1.0")] for one in data.measured_on}
    quiet_trainer(tmp_path, callback, max_steps=2).fit(FakeModule(), datamodule=data)
    warning = callback.history[0].judge_warning
    if sign > 0:
        assert warning is None
    else:
        assert (
            warning is not None and "right in 0 % (0 to 14) of 40 labelled pairs, which is worse than a coin" in warning
        )
        assert capsys.readouterr().out.count("The judge: It contradicts") == 1, "once, not at each measurement"
