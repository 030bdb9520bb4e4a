from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lit_align.judges import Comparison, Judge, PairwiseJudge, RecordedScores, RuleJudge
from lit_align.judges.vote_arrays import votes_from_scores
from tests.helpers.candidates import make_set

NAN = math.nan


def longer_is_better(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [len(candidate) for candidate in candidates]


def test_votes_from_scores() -> None:
    votes = votes_from_scores([1.0, 2.0, NAN], [1.0, 3.0])
    np.testing.assert_array_equal(votes, [[0.5, 0.0], [1.0, 0.0], [NAN, NAN]])


# -- rules


def test_a_rule_by_import_path_scores_and_votes() -> None:
    judge = RuleJudge("tests.test_judges.longer_is_better")
    assert judge.identity == "rule:tests.test_judges.longer_is_better"
    assert judge.score([make_set("p", "a", "bbb"), make_set("q", "cc")]) == [[1.0, 3.0], [2.0]]
    (votes,) = judge.cross_votes([make_set("p", "aa", "b")], [make_set("p", "cc", "ddd")])
    np.testing.assert_array_equal(votes, [[0.5, 0.0], [0.0, 0.0]])


def test_a_rule_sees_prompt_texts_and_the_static_row() -> None:
    seen: list[Any] = []

    def rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
        seen.append((prompt, candidates, row))
        return [0.0] * len(candidates)

    RuleJudge(rule).cross_votes([make_set("p", "mine")], [make_set("p", "static", row={"limit": 3})])
    assert seen == [("p", ["mine", "static"], {"limit": 3})], "both sides in one call, so that a rule may compare"


def test_what_is_not_finite_is_an_abstention() -> None:
    judge = RuleJudge(lambda prompt, candidates, row: [math.inf, NAN, 1])
    (scores,) = judge.score([make_set("p", "a", "b", "c")])
    assert math.isnan(scores[0]) and math.isnan(scores[1]) and scores[2] == 1.0


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ([1.0], ValueError, "1 scores for 2 candidates"),
        (None, TypeError, "returned None"),
        (["1", "2"], TypeError, "expected a list with one number"),
        ([1.0, None], TypeError, "expected a list with one number"),
    ],
)
def test_a_rule_that_answers_wrongly_is_named_with_its_row(answer: Any, error: type[Exception], says: str) -> None:
    def my_rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> Any:
        return answer

    with pytest.raises(error, match=says) as caught:
        RuleJudge(my_rule).score([make_set("p", "a", "b")])
    assert "my_rule" in str(caught.value) and "p.jsonl:1" in str(caught.value)


def test_an_error_of_a_rule_stays_and_notes_the_row() -> None:
    def my_rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> Any:
        return row["no such column"]

    with pytest.raises(KeyError, match="no such column") as caught:
        RuleJudge(my_rule).score([make_set("p", "a", "b")])
    (note,) = caught.value.__notes__
    assert "my_rule on p.jsonl:1" in note


@pytest.mark.parametrize("path", ["no_such_module.rule", "tests.test_judges.no_such_rule", "rule", "math.pi"])
def test_an_import_path_that_leads_nowhere(path: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        RuleJudge(path)


# -- recorded scores


def test_recorded_scores_are_taken_from_the_candidates() -> None:
    judge = RecordedScores()
    assert judge.score([make_set("p", "a", "b", scores=[0.25, 1.0])]) == [[0.25, 1.0]]
    with pytest.raises(ValueError, match=r"candidate 2 .* \(p.jsonl:1\) has no recorded score"):
        judge.score([make_set("p", "a", "b", scores=[0.25, None])])


def test_a_side_without_recorded_scores_is_the_one_that_is_named() -> None:
    scored, unscored = (
        make_set("p", "a", "b", scores=[0.0, 1.0]),
        replace(make_set("p", "c"), where="other.jsonl, row 7"),
    )
    assert RecordedScores().cross_votes([scored], [scored])[0].tolist() == [[0.5, 0.0], [1.0, 0.5]]
    for sides in (([scored], [unscored]), ([unscored], [scored])):
        with pytest.raises(ValueError, match=r"candidate 1 .* \(other\.jsonl, row 7\) has no recorded score"):
            RecordedScores().cross_votes(*sides)


# -- comparing different prompts is a mistake of the caller


@pytest.mark.parametrize("judge", [RecordedScores(), RuleJudge(longer_is_better)])
def test_cross_votes_need_matched_prompts(judge: Judge) -> None:
    with pytest.raises(ValueError, match="same prompt"):
        judge.cross_votes([make_set("p", "a")], [make_set("q", "a")])
    with pytest.raises(ValueError, match="as many"):
        judge.cross_votes([make_set("p", "a")], [])


# -- pairwise


class Biased(PairwiseJudge):
    """Prefers the longer text, and the first place by 0.2."""

    identity = "biased"

    def __init__(self) -> None:
        self.calls: list[Sequence[Comparison]] = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        self.calls.append(comparisons)
        return [min(1.0, 0.5 + 0.2 + 0.3 * np.sign(len(c.first) - len(c.second))) for c in comparisons]


def test_both_orders_are_averaged() -> None:
    judge = Biased()
    votes = judge.cross_votes(
        [make_set("p", "aa", "b"), make_set("q", "x")], [make_set("p", "cc"), make_set("q", "xyz", "")]
    )
    # longer: (1.0 + (1 - 0.4)) / 2 = 0.8; as long: (0.7 + 0.3) / 2 = 0.5; shorter: 0.2
    np.testing.assert_allclose(votes[0], [[0.5], [0.2]])
    np.testing.assert_allclose(votes[1], [[0.2, 0.8]])
    assert [len(call) for call in judge.calls] == [8], "one call, so that a judge can batch"
    assert {(c.first, c.second) for c in judge.calls[0] if c.prompt[0].content == "q"} == {
        ("x", "xyz"), ("xyz", "x"), ("x", ""), ("", "x"),
    }  # fmt: skip


def test_a_pairwise_score_is_the_mean_chance_against_the_others() -> None:
    scores = Biased().score([make_set("p", "a", "bb", "ccc"), make_set("q", "lone")])
    np.testing.assert_allclose(scores[0], [0.2, 0.5, 0.8])
    assert scores[1] == [0.5]


def test_an_abstention_in_either_order_is_one() -> None:
    class Silent(Biased):
        def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
            return [NAN if c.first == "b" else 0.9 for c in comparisons]

    (votes,) = Silent().cross_votes([make_set("p", "a", "b")], [make_set("p", "c")])
    np.testing.assert_array_equal(np.isnan(votes), [[False], [True]])
    (scores,) = Silent().score([make_set("p", "a", "b")])
    assert all(map(math.isnan, scores))


@pytest.mark.parametrize(("answer", "says"), [([0.5], "for each comparison"), ([1.5, 0.5], r"in \[0, 1\]")])
def test_a_pairwise_judge_that_answers_wrongly(answer: list[float], says: str) -> None:
    class Wrong(Biased):
        def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
            return answer

    with pytest.raises(ValueError, match=says):
        Wrong().cross_votes([make_set("p", "a")], [make_set("p", "b")])


def test_equal_comparisons_are_asked_for_once_and_tie_exactly() -> None:
    judge = Biased()
    (votes,) = judge.cross_votes([make_set("p", "aa", "aa", "b")], [make_set("p", "aa", "b")])
    assert len(judge.calls[0]) == len(set(judge.calls[0])) == 4  # aa-aa, aa-b, b-aa, b-b
    np.testing.assert_allclose(votes, [[0.5, 0.8], [0.5, 0.8], [0.2, 0.5]])
    assert votes[0, 0] == 0.5


def test_votes_within_a_set_are_the_cross_votes_of_it_with_itself() -> None:
    candidate_set, off = make_set("p", "a", "bb", "ccc"), ~np.eye(3, dtype=bool)
    for judge in (Biased(), RuleJudge(longer_is_better)):
        (within,), (across,) = judge.votes_within([candidate_set]), judge.cross_votes([candidate_set], [candidate_set])
        np.testing.assert_allclose(within[off], across[off])
    quiet = Biased()
    quiet.votes_within([candidate_set])
    assert len(quiet.calls[0]) == 6, "a candidate is not compared with itself"


def test_an_error_of_a_judge_that_compares_notes_judge_and_prompt() -> None:
    class Broken(Biased):
        def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck") as caught:
        Broken().score([make_set("first prompt", "a", "b"), make_set("q", "a", "b")])
    assert caught.value.__notes__ == ["raised by Broken on the prompt 'first prompt' and 1 more prompts"]
