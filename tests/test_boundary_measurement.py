"""A measurement: batches until it is decided, one pass of the judge, and what becomes of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_align.boundary import BoundaryCallback, BoundaryResult, BoundaryScore, Measurement, Switch
from lit_align.boundary.record import readable
from lit_align.boundary.switch import as_decision, without_information
from lit_align.boundary.votes import count_votes, judge_prompts
from lit_align.judges import Comparison, Judge, PairwiseJudge, RecordedScores, RuleJudge
from lit_align.judges.cache import CachedJudge
from lit_align.judges.vote_arrays import graded_votes, votes_from_scores
from lit_align.records import Candidate, CandidateSet, Stage
from lit_align.report.crossing import crossing
from lit_align.report.measurement import readable as measured
from lit_align.report.measurement import result_record
from tests.helpers.boundary_fakes import FakeData, FakeModule, by_number, number_sets, quiet_trainer


def answers(prompts: int, *numbers: float) -> list[CandidateSet]:
    return number_sets(prompts, numbers)


def fit(folder: Path, callback: BoundaryCallback, data: FakeData, **arguments: Any) -> FakeData:
    quiet_trainer(folder, callback, **arguments).fit(FakeModule(), datamodule=data)
    return data


# -- batches


def test_it_stops_at_the_batch_that_decides(tmp_path: Path) -> None:
    data, callback = FakeData([0.1] * 7, prompts=90), BoundaryCallback(batch_prompts=7, max_prompts=80)
    fit(tmp_path, callback, data, max_steps=1)
    batches = [prompts for _, prompts in data.sampled]
    decision = callback.history[0]
    assert [len(batch) for batch in batches] == [7, 7] and decision.prompts == 14, "ten losses in a row are enough"
    assert (decision.stopped, decision.method, decision.decided) == ("decided", "betting", True)
    assert len({prompt for batch in batches for prompt in batch}) == 14, "without replacement"


@pytest.mark.parametrize(
    ("prompts", "stopped", "shown"), [(50, "budget", "max_prompts"), (20, "pool", "all there are")]
)
def test_undecided_it_says_why_there_were_no_more_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: int, stopped: str, shown: str
) -> None:
    data = FakeData([0.5] * 7, prompts=prompts)
    callback = BoundaryCallback(batch_prompts=8, max_prompts=30, alpha=1e-6)
    fit(tmp_path, callback, data, max_steps=1)
    decision = callback.history[0]
    assert decision.prompts == min(prompts, 30) and decision.stopped == stopped
    assert decision.low is not None and decision.high is not None and decision.low < 0.5 < decision.high
    assert "undecided on fewer than 32 prompts" in decision.reason
    assert f" s, {shown})" in capsys.readouterr().out


def test_all_prompts_have_those_of_the_sequential_measurement_first(tmp_path: Path) -> None:
    """The same batches with the same seeds, so that the two compare."""
    short, whole = FakeData([0.1] * 7), FakeData([0.1] * 7)
    fit(tmp_path, BoundaryCallback(batch_prompts=12), short, max_steps=1)
    fixed = BoundaryCallback(batch_prompts=12, sequential=False, alpha=0.1)
    fit(tmp_path, fixed, whole, max_steps=1)
    assert len(whole.sampled) == 4 and short.sampled == whole.sampled[:1]
    decision = fixed.history[0]
    assert (decision.prompts, decision.method, decision.stopped, decision.alpha) == (40, "student_t", "pool", 0.1)


def test_all_at_once_it_finds_what_the_metric_finds() -> None:
    rng = np.random.default_rng(0)
    on = [answers(1, *rng.normal(2.5, 1, 3))[0] for _ in range(50)]
    off = [answers(1, *rng.normal(2.5, 1, 2))[0] for _ in range(50)]
    judge = RuleJudge(by_number)
    metric = BoundaryScore(confidence=0.9)
    metric.update(judge.cross_votes(on, off))
    measurement = Measurement(judge, alpha=0.1, sequential=False)
    for at in range(0, 50, 8):
        measurement.add(on[at : at + 8], off[at : at + 8])
    found, expected = measurement.result(), metric.result()
    for name in ("score", "low", "high", "votes_on", "votes_off", "ties", "prompts", "alpha"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12), name


def test_nothing_judged_is_an_error() -> None:
    class Silent(RuleJudge):
        def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
            return [[float("nan")] * len(one.candidates) for one in sets]

    measurement = Measurement(Silent(by_number))
    with pytest.raises(ValueError, match="no prompt has a cross vote .0 abstentions"):
        measurement.result()
    measurement.add(answers(2, 1.0), answers(2, 2.0, 3.0))
    assert not measurement.done
    with pytest.raises(ValueError, match="no prompt has a cross vote .4 abstentions"):
        measurement.result()


def test_every_measurement_has_a_seed_of_its_own_whatever_its_batches(tmp_path: Path) -> None:
    def purposes(batch: int) -> list[tuple[str | int, ...]]:
        callback = BoundaryCallback(every_n_steps=3, batch_prompts=batch, sequential=False)
        return fit(tmp_path, callback, FakeData([0.5] * 7)).purposes

    assert len(purposes(9)) == 3 * 5
    assert set(purposes(9)) == set(purposes(40)) == {("boundary", 0), ("boundary", 3), ("boundary", 6)}


# -- one pass of the judge


def test_a_scoring_judge_is_asked_once() -> None:
    asked = []

    class Counting(RuleJudge):
        def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
            asked.append([len(one.candidates) for one in sets])
            return super().score(sets)

    judged = judge_prompts(Counting(by_number), answers(2, 2.5, 4.0), answers(2, 1.0, 3.0, 4.0))
    assert asked == [[5, 5]]
    assert judged[0].votes == (3, 2, 1, 0)
    assert [c.score for c in judged[0].on.candidates] == [2.5, 4.0]
    assert [c.score for c in judged[0].off.candidates] == [1.0, 3.0, 4.0]


def test_a_cached_judge_keeps_its_scores(tmp_path: Path) -> None:
    class Keepable(RuleJudge):
        cacheable = True

    judge = CachedJudge(Keepable(by_number), str(tmp_path / "verdicts.sqlite"))
    (one,) = judge_prompts(judge, answers(1, 2.5), answers(1, 1.0, 3.0))
    assert one.votes == (1, 1, 0, 0) and [c.score for c in one.off.candidates] == [1.0, 3.0]


def test_votes_of_a_judge_s_own_making_go_before_its_scores() -> None:
    class Contrary(RuleJudge):
        def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
            return [1 - block for block in super().cross_votes(on, off)]

    (one,) = judge_prompts(Contrary(by_number), answers(1, 9.0), answers(1, 1.0))
    assert one.votes == (0, 1, 0, 0)


class Marks(Judge):
    """A judge of its own kind that says that it grades."""

    identity = "marks"
    grades = True

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        return [[float(candidate.text) for candidate in candidates.candidates] for candidates in sets]

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        raise AssertionError("the scores say it all")


def test_any_judge_that_says_so_grades() -> None:
    (marked,) = judge_prompts(Marks(), answers(1, 3.0, 2.0), answers(1, 1.0, 2.0))
    (ruled,) = judge_prompts(RuleJudge(by_number), answers(1, 3.0, 2.0), answers(1, 1.0, 2.0))
    assert marked.grades.tolist() == ruled.grades.tolist() and marked.on == ruled.on


def test_a_judge_that_loses_a_score_is_named() -> None:
    class Short(Marks):
        def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
            return [scores[:-1] for scores in super().score(sets)]

    with pytest.raises(ValueError, match=r"expected marks to score \[3\] candidates of 1 sets, got \[2\]"):
        judge_prompts(Short(), answers(1, 3.0), answers(1, 1.0, 2.0))


class HigherNumber(PairwiseJudge):
    identity = "the higher number"

    def __init__(self) -> None:
        self.asked = 0

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        self.asked += len(comparisons)
        verdicts = [0.5 + (float(one.first) - float(one.second)) / 10 for one in comparisons]
        return [
            float("nan") if "9" in one.first + one.second else v for one, v in zip(comparisons, verdicts, strict=True)
        ]


def test_a_comparing_judge_is_asked_for_the_cross_votes_alone() -> None:
    """A candidate's score is its mean chance against the other side."""
    judge = HigherNumber()
    (one,) = judge_prompts(judge, answers(1, 2.0, 9.0), answers(1, 1.0, 4.0))
    assert judge.asked <= 8 and one.votes == (1, 1, 0, 2)
    assert one.on.candidates[0].score == pytest.approx((0.6 + 0.3) / 2)
    assert one.on.candidates[1].score is None, "no verdict, no score"
    assert [c.score for c in one.off.candidates] == pytest.approx([0.4, 0.7])


def test_recorded_scores_stay_what_they_are() -> None:
    scored = CandidateSet(answers(1)[0].prompt, (Candidate("x", score=0.3),))
    (one,) = judge_prompts(RecordedScores(), [scored], [scored])
    assert one.votes == (0, 0, 1, 0) and one.on.candidates[0].score == 0.3


def test_grades_say_by_how_much() -> None:
    (one,) = judge_prompts(RuleJudge(by_number), answers(1, 3.0, 2.0), answers(1, 1.0, 2.0))
    # The scores reach from 1 to 3: 3 against 1 is all of it, 3 against 2 and 2 against 1 half, 2 against 2 nothing.
    assert one.grades.tolist() == [[1.0, 0.75], [0.75, 0.5]]
    assert one.share(graded=True) == 0.75 and one.share(graded=False) == 0.875
    (scaled,) = judge_prompts(RuleJudge(by_number), answers(1, 320.0, 220.0), answers(1, 120.0, 220.0))
    assert scaled.grades.tolist() == one.grades.tolist(), "the judge's scale does not matter"
    (equal,) = judge_prompts(RuleJudge(by_number), answers(1, 2.0), answers(1, 2.0, 2.0))
    assert equal.grades.tolist() == [[0.5, 0.5]]

    recorded = [replace(side, candidates=tuple(side.candidates)) for side in (one.on, one.off)]
    assert judge_prompts(RecordedScores(), recorded[:1], recorded[1:])[0].grades.tolist() == one.grades.tolist()
    (compared,) = judge_prompts(HigherNumber(), answers(1, 2.0, 9.0), answers(1, 1.0, 4.0))
    assert compared.share(graded=True) == pytest.approx((0.6 + 0.3) / 2), "its probabilities; no verdict is none"
    assert np.isnan(graded_votes([float("nan"), 1.0], [0.0])).tolist() == [[True], [False]]
    infinite = [float("inf"), 0.0]
    assert graded_votes(infinite, [1.0]).tolist() == votes_from_scores(infinite, [1.0]).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("sequential", [True, False])
def test_a_graded_score_is_the_mean_grade(sequential: bool) -> None:
    """Three narrow losses and one clear win: by votes injection, by margins not."""
    on, off = answers(8, 9.0, 1.0), answers(8, 1.5, 2.0)
    by_votes, graded = (
        Measurement(RuleJudge(by_number), sequential=sequential),
        Measurement(RuleJudge(by_number), sequential=sequential, graded=True),
    )
    for measurement in (by_votes, graded):
        measurement.add(on, off)
    assert by_votes.result().score == 0.5 and not by_votes.result().graded
    expected = 0.5 + ((9 + 1) / 2 - (1.5 + 2) / 2) / (2 * 8)
    found = graded.result()
    assert found.score == pytest.approx(expected) and found.graded and found.low <= found.score <= found.high
    assert (found.votes_on, found.votes_off) == (16, 16), "the votes are counted all the same"
    assert "graded score 0.70 [" in readable(as_decision(0, found, Switch().choose(found, [])))
    assert measured(result_record(found, "measured")).startswith("Boundary score, graded, 0.703")


def test_a_run_may_follow_the_graded_score(tmp_path: Path) -> None:
    decisions = []
    for graded in (False, True):
        callback = BoundaryCallback(every_n_steps=9, graded=graded, sequential=False)
        fit(tmp_path, callback, FakeData([0.7] * 7), max_steps=1)
        decisions.append(callback.history[0])
    assert [one.graded for one in decisions] == [False, True] and decisions[0].score != decisions[1].score
    assert decisions[0].votes_on == decisions[1].votes_on, "the same samples"


def test_votes_of_a_prompt() -> None:
    votes = count_votes(np.array([[1.0, 0.5, float("nan")], [0.2, 0.51, 0.0]]))
    assert votes == (2, 2, 1, 1) and votes.share == 0.5
    assert count_votes(np.array([[float("nan")]])).share is None


# -- what becomes of it


def test_the_samples_are_offered_after_the_round_is_asked_for(tmp_path: Path) -> None:
    data = fit(tmp_path, BoundaryCallback(every_n_steps=2, batch_prompts=12), FakeData([0.1] * 3 + [0.9] * 4))
    assert data.rounds == [4]
    assert [(step, rounds) for step, rounds, _ in data.offered] == [(4, 1), (6, 1)], "the off-policy ones are not"
    for (step, _, sets), prompts in zip(data.offered, [p for s, p in data.sampled if s >= 4], strict=True):
        assert [one.prompt[0].content for one in sets] == prompts and step >= 4
        assert all(
            candidate.score is None and float(candidate.text) > 3 for one in sets for candidate in one.candidates
        )


def test_both_sides_characteristics_are_kept_and_logged(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logged: list[dict[str, float]] = []

    class Listening(CSVLogger):
        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            logged.append(metrics)

    callback = BoundaryCallback(num_candidates=3)
    fit(tmp_path, callback, FakeData([0.5]), max_steps=1, logger=Listening(tmp_path))
    sides = callback.history[0].characteristics
    assert sides is not None and sides.keys() == {"on_policy", "off_policy"}
    assert sides["on_policy"]["candidates"] == sides["off_policy"]["candidates"] == 3, "at the same number"
    metrics = next(one for one in logged if "boundary/score" in one)
    assert metrics["boundary/off_policy/score_mean"] == sides["off_policy"]["score_mean"]
    assert metrics["boundary/on_policy/distinct_1"] == sides["on_policy"]["distinct_1"]
    assert metrics["boundary/decided"] in (0.0, 1.0)


class First(PairwiseJudge):
    """Prefers whatever stands first."""

    identity = "first"

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        return [1.0] * len(comparisons)


def letters(prompts: int, *lengths: int) -> list[CandidateSet]:
    """Candidates of these lengths; a little longer from prompt to prompt."""
    return [
        replace(one, candidates=tuple(Candidate("x" * (5 * n + length)) for length in lengths))
        for n, one in enumerate(answers(prompts, *lengths))
    ]


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (RuleJudge(lambda prompt, texts, row: [len(text) for text in texts]), "longer answer won 100 %"),
        (RuleJudge(lambda prompt, texts, row: [-len(text) for text in texts]), "shorter answer won 100 %"),
        (First(), "told no answers apart"),
        (RuleJudge(lambda prompt, texts, row: [float(len(text) % 3) for text in texts]), None),
    ],
)
def test_a_judge_that_goes_by_length_or_order_alone_is_named(judge: Judge, words: str | None) -> None:
    measurement = Measurement(judge, sequential=False)
    measurement.add(letters(12, 3, 10), letters(12, 1, 8, 6))
    found = measurement.result()
    if isinstance(judge, First):  # it told nothing apart, which is said anyway
        assert found.judge_warning is None and not found.informative
    elif words is None:
        assert found.judge_warning is None
    else:
        assert found.judge_warning is not None and words in found.judge_warning
        assert f"The judge: {found.judge_warning}" in " ".join(measured(result_record(found, "measured")).split())


def test_the_state_stays_plain(tmp_path: Path) -> None:
    callback = BoundaryCallback()
    fit(tmp_path, callback, FakeData([0.5] * 7), max_steps=2)
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    again = BoundaryCallback()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.history == callback.history


# -- a judge that tells no answers apart


class Indifferent(RuleJudge):
    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        return [[1.0] * len(one.candidates) for one in sets]


TIED = BoundaryResult(0.5, 0.4, 0.6, prompts=9, votes_on=0, votes_off=0, ties=72)


@pytest.mark.parametrize(("static_pairs", "stage"), [(["one"], "injection"), ([], "fine_tuning")])
def test_a_judge_that_only_ties_is_called_out_and_changes_nothing(
    tmp_path: Path, static_pairs: list[str], stage: str
) -> None:
    data, callback = FakeData([0.9] * 7), BoundaryCallback(every_n_steps=3)
    data.judge, data.train_pairs = Indifferent(by_number), static_pairs
    with pytest.warns(UserWarning, match="told no answers apart: all 320 cross votes of 40 prompts are ties"):
        fit(tmp_path, callback, data)
    assert [decision.stage for decision in callback.history] == [stage] * 3
    assert all("told no answers apart" in decision.reason for decision in callback.history)
    told = crossing(callback.history)
    assert not told["crossed"] and told["text"].startswith("The judge told no answers apart")


def test_without_information_the_share_stays() -> None:
    assert TIED.stage is Stage.INJECTION and not TIED.informative
    history = [as_decision(0, None, without_information([], True)._replace(share=0.3))]
    assert without_information(history, True).share == 0.3


def test_ties_alone_do_not_ask_for_a_switch() -> None:
    sure = BoundaryResult(0.3, 0.2, 0.4, 9, 10, 30, 0)
    switch = Switch(patience=2)
    history = [as_decision(0, sure, switch.choose(sure, []))]
    history.append(as_decision(1, TIED, without_information(history, True)))
    over = BoundaryResult(0.7, 0.6, 0.8, 9, 30, 10, 0)
    assert switch.choose(over, history).share == 0, "one of two"
