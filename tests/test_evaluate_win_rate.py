"""Win rates: values derived by hand, identities, and coverage by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lit_align.evaluate import JudgedAnswers, control_length, judge_answers, win_rate_of, win_rates_by_category
from lit_align.judges import RuleJudge
from lit_align.judges.base import Comparison, PairwiseJudge
from lit_align.records import Candidate, CandidateSet, FinishReason, Message


def judged(share: float, length: int = 1, opponent_length: int = 1, **more: Any) -> JudgedAnswers:
    prompt = (Message("user", "p"),)
    return JudgedAnswers(prompt, Candidate("x" * length), Candidate("y" * opponent_length), share, **more)


def sets(*texts: str, rows: Sequence[dict[str, Any]] | None = None) -> list[CandidateSet]:
    return [
        CandidateSet((Message("user", f"p{n}"),), (Candidate(text),), row=rows[n] if rows else {})
        for n, text in enumerate(texts)
    ]


def by_length(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [float(len(text)) if text != "?" else math.nan for text in candidates]


class PrefersFirst(PairwiseJudge):
    """Prefers what it sees first, except that it finds `good` wherever it stands."""

    identity = "prefers first"

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        verdicts = []
        for comparison in comparisons:
            good = [text == "good" for text in (comparison.first, comparison.second)]
            verdicts.append(0.5 + 0.5 * (good[0] - good[1]) if any(good) else 1.0)
        return verdicts


def test_counts_and_means_by_hand() -> None:
    result = win_rate_of([judged(1.0, 4), judged(0.9, 6), judged(0.5, 2), judged(0.0, 8), judged(math.nan, 10)])
    assert (result.wins, result.ties, result.losses, result.abstentions, result.prompts) == (2, 1, 1, 1, 4)
    assert result.score == 2.5 / 4
    assert result.low < result.score < result.high
    assert (result.mean_length, result.opponent_mean_length) == (6.0, 1.0)
    assert result.same_in_both_orders is None


def test_no_verdict_at_all_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="abstained from all"):
        win_rate_of([judged(math.nan)])


def test_cut_answers_are_counted() -> None:
    cut = JudgedAnswers((Message("user", "p"),), Candidate("a", finish_reason=FinishReason.LENGTH), Candidate("b"), 1.0)
    result = win_rate_of([cut, judged(1.0)])
    assert (result.cut, result.opponent_cut) == (0.5, 0.0)


def test_categories_are_told_apart() -> None:
    pairs = [
        judged(1.0, category="a"),
        judged(0.0, category="b"),
        judged(1.0, category="b"),
        judged(0.0),
        judged(math.nan, category="c"),
    ]
    rates = win_rates_by_category(pairs)
    assert {name: (rate.score, rate.prompts) for name, rate in rates.items()} == {"b": (0.5, 2), "a": (1.0, 1)}
    assert list(rates) == ["b", "a"]


def test_a_judge_that_grades_gives_votes_and_scores() -> None:
    rows: list[dict[str, Any]] = [{"kind": "x"}, {"kind": 2}, {}]
    pairs = judge_answers(RuleJudge(by_length), sets("aaa", "b", "?"), sets("aa", "b", "c", rows=rows), "kind")
    assert [pair.verdict for pair in pairs] == ["win", "tie", "abstained"]
    assert [(pair.answer.score, pair.opponent.score) for pair in pairs] == [(3.0, 2.0), (1.0, 1.0), (None, 1.0)]
    assert [pair.category for pair in pairs] == ["x", "2", None]
    assert win_rate_of(pairs).mean_score == 2.0


def test_a_judge_that_sees_an_order_is_asked_in_both() -> None:
    pairs = judge_answers(PrefersFirst(), sets("bad", "good", "bad"), sets("worse", "bad", "good"))
    assert [pair.verdict for pair in pairs] == ["tie", "win", "loss"]
    assert [pair.orders for pair in pairs] == [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]
    assert [pair.same_in_both_orders for pair in pairs] == [False, True, True]
    assert win_rate_of(pairs).same_in_both_orders == pytest.approx(2 / 3)


def test_answers_against_themselves_are_half() -> None:
    same = sets("a", "bb", "ccc")
    rate = win_rate_of(judge_answers(RuleJudge(by_length), same, same))
    assert (rate.score, rate.ties, rate.length_controlled.score) == (0.5, 3, 0.5)


def test_without_a_difference_of_lengths_it_is_the_win_rate() -> None:
    shares = [1.0, 1.0, 1.0, 0.5, 0.0]
    assert control_length(shares, [0] * 5).score == pytest.approx(3.5 / 5, abs=1e-9)


def test_the_regression_by_hand() -> None:
    """Each length wins half of its prompts: theta and phi are 0."""
    result = control_length([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], [10, 10, -10, -10, -10, -10])
    assert (result.score, result.coefficient) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-9))


def test_the_regression_solves_its_own_equations() -> None:
    """At the largest posterior the residuals sum to 0, and weighted by x to phi / 2.5^2."""
    shares = np.array([1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 1.0])
    differences = np.array([120.0, 40.0, -10.0, -80.0, 15.0, 30.0, -5.0])
    result = control_length(shares.tolist(), differences.tolist())
    x = np.tanh(differences / differences.std(ddof=1))
    theta = math.log(result.score / (1 - result.score))
    residuals = shares - 1 / (1 + np.exp(-(theta + result.coefficient * x)))
    assert residuals.sum() == pytest.approx(0.0, abs=1e-8)
    assert residuals @ x == pytest.approx(result.coefficient / 2.5**2, abs=1e-8)


def test_sides_and_units_do_not_matter() -> None:
    shares = [1.0, 0.0, 1.0, 1.0, 0.5]
    differences = [30, -20, 50, -10, 5]
    result = control_length(shares, differences)
    swapped = control_length([1 - share for share in shares], [-difference for difference in differences])
    in_words = control_length(shares, [difference / 5 for difference in differences])
    assert swapped.score == pytest.approx(1 - result.score, abs=1e-7)
    assert (swapped.low, swapped.high) == (pytest.approx(1 - result.high), pytest.approx(1 - result.low))
    assert in_words.score == pytest.approx(result.score)


def test_a_judge_that_only_counts_length_gives_half() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(40, 60, 400)
    shares = (differences > 0).astype(float).tolist()
    result = control_length(shares, differences.tolist())
    assert np.mean(shares) > 0.7
    assert result.low < 0.5 < result.high
    assert result.coefficient > 2


def test_one_side_longer_throughout_tells_nothing() -> None:
    result = control_length([1.0] * 150 + [0.0] * 50, [100.0] * 200)
    assert result.low < 0.15 and result.high > 0.9


@pytest.mark.parametrize(
    ("theta", "phi", "prompts"), [(0.0, 0.0, 20), (0.5, 1.5, 40), (1.5, -2.0, 40), (2.5, 1.0, 100)]
)
def test_the_interval_covers_the_truth(theta: float, phi: float, prompts: int) -> None:
    rng = np.random.default_rng(7)
    truth = 1 / (1 + math.exp(-theta))
    covered = 0
    for _ in range(200):
        differences = rng.normal(20, 60, prompts)
        chances = 1 / (1 + np.exp(-(theta + phi * np.tanh(differences / 60))))
        result = control_length((rng.random(prompts) < chances).astype(float).tolist(), differences.tolist())
        covered += result.low <= truth <= result.high
    assert covered >= 182  # 95 % of 200, minus about two standard deviations
