"""The combined judge: a mean of probabilities under vetoes, with numbers derived by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from lit_align.judges import (
    CachedJudge,
    CombinedJudge,
    Comparison,
    Judge,
    JudgePart,
    PairwiseJudge,
    PointwiseJudge,
    RecordedScores,
)
from lit_align.judges.vote_arrays import votes_from_scores
from lit_align.records import Candidate, CandidateSet, Message
from tests.helpers.candidates import make_set

NAN = math.nan


class Shorter(PointwiseJudge):
    """Minus the length; "?" is an abstention."""

    identity = "shorter"
    cacheable = True

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        return [
            [NAN if "?" in c.text else -float(len(c.text)) for c in candidate_set.candidates] for candidate_set in sets
        ]


class Alphabet(PairwiseJudge):
    """The first letter that comes earlier wins, the surer the further it is; the first place gets 0.1 more."""

    identity = "alphabet"

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        steps = [ord(c.second[0]) - ord(c.first[0]) for c in comparisons]
        return [
            NAN if "!" in c.first + c.second else 0.5 + 0.1 * s + 0.1 for c, s in zip(comparisons, steps, strict=True)
        ]


def parts(**shorter: Any) -> list[JudgePart]:
    return [JudgePart(Alphabet(), weight=3.0), JudgePart(Shorter(), **shorter)]


def test_the_mean_of_votes_is_weighted() -> None:
    (votes,) = CombinedJudge(parts()).cross_votes([make_set("p", "a", "dd")], [make_set("p", "bbb", "c")])
    # alphabet: a-b 0.6, a-c 0.7, d-b 0.3, d-c 0.4; shorter: 1, 0.5, 1, 0; weights 3 : 1
    np.testing.assert_allclose(votes, [[(1.8 + 1) / 4, (2.1 + 0.5) / 4], [(0.9 + 1) / 4, 1.2 / 4]], atol=1e-12)


def test_a_scale_makes_scores_probabilities() -> None:
    (votes,) = CombinedJudge([JudgePart(Shorter(), scale=2.0)]).cross_votes(
        [make_set("p", "a")], [make_set("p", "bbb", "c" * 9999, "d")]
    )
    np.testing.assert_allclose(votes, [[1 / (1 + math.exp(-1)), 1.0, 0.5]], atol=1e-12)


def test_scores_and_votes_agree() -> None:
    judge = CombinedJudge(parts(scale=1.5))
    texts = ["a", "bb", "cccc"]
    (scores,) = judge.score([make_set("p", *texts)])
    (within,) = judge.votes_within([make_set("p", *texts)])
    (across,) = judge.cross_votes([make_set("p", *texts)], [make_set("p", *texts)])
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(within[off], across[off], atol=1e-12)
    np.testing.assert_allclose(within[off], (1 - within.T)[off], atol=1e-12)
    np.testing.assert_allclose(scores, [across[i][off[i]].mean() for i in range(3)], atol=1e-12)
    assert judge.score([make_set("p", "lone"), make_set("p")]) == [[0.5], []]
    for pair in (("a", "bb"), ("bbbb", "a"), ("b", "aaaaaa")):
        (first, second), (vote,) = (
            judge.score([make_set("p", *pair)])[0],
            judge.cross_votes([make_set("p", pair[0])], [make_set("p", pair[1])]),
        )
        assert (first > second) == (vote[0, 0] > 0.5) and first == pytest.approx(vote[0, 0])


def test_ties_stay_ties_to_the_last_bit() -> None:
    judge = CombinedJudge([JudgePart(Shorter(), weight=w, scale=s) for w, s in ((0.1, None), (0.2, 3.0), (0.7, 7.0))])
    assert judge.cross_votes([make_set("p", "ab", "c")], [make_set("p", "xy")])[0][0, 0] == 0.5
    assert judge.score([make_set("p", "ab", "xy", "zz")]) == [[0.5, 0.5, 0.5]]
    weights, judges = (0.1, 0.2, 0.2, 0.1), (Shorter(), Shorter(), RecordedScores(), RecordedScores())
    assert (0.1 + 0.2) / sum(weights) != 0.5
    against = CombinedJudge([JudgePart(judge, weight) for judge, weight in zip(judges, weights, strict=True)])
    sides = [CandidateSet((Message("user", "p"),), (Candidate(text, score=len(text)),)) for text in ("a", "bb")]
    assert against.cross_votes(sides[:1], sides[1:])[0].tolist() == [[0.5]], "as many for as against, by weight"


def test_one_part_alone_votes_as_it_does_by_itself() -> None:
    on, off = [make_set("p", "b", "ab")], [make_set("p", "a", "cccc", "ee")]
    for judge in (Shorter(), Alphabet()):
        combined = CombinedJudge([JudgePart(judge, weight=0.3)])
        np.testing.assert_allclose(combined.cross_votes(on, off)[0], judge.cross_votes(on, off)[0], atol=1e-12)
    np.testing.assert_allclose(
        CombinedJudge([JudgePart(Alphabet())]).score(off)[0], Alphabet().score(off)[0], atol=1e-12
    )


def test_a_vetoed_answer_loses_whatever_the_others_say() -> None:
    judge = CombinedJudge([JudgePart(Alphabet()), JudgePart(Shorter(), weight=0, veto_below=-3)])
    (votes,) = judge.cross_votes([make_set("p", "aaaa", "ccc")], [make_set("p", "b", "eeeee")])
    # "aaaa" (4 > 3) and "eeeee" are vetoed: the alphabet alone decides c-b = 0.4
    np.testing.assert_allclose(votes, [[0.0, 0.5], [0.4, 1.0]], atol=1e-12)
    (scores,) = judge.score([make_set("p", "aaaa", "b", "c", "aaaaa")])
    np.testing.assert_allclose(scores, [0.5 / 3, (0.6 + 2) / 3, (0.4 + 2) / 3, 0.5 / 3], atol=1e-12)
    assert judge.score([make_set("p", "aaaa", "bbbb")]) == [[0.5, 0.5]], "all vetoed: a tie, of which no pair is made"


def test_a_part_may_weigh_and_veto_and_any_veto_counts() -> None:
    class Odd(Shorter):
        identity = "odd"

        def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
            return [[float(len(c.text) % 2) for c in candidate_set.candidates] for candidate_set in sets]

    judge = CombinedJudge([JudgePart(Shorter(), veto_below=-3), JudgePart(Odd(), veto_below=1)])
    (votes,) = judge.cross_votes([make_set("p", "a", "bb", "ccccc")], [make_set("p", "ddd")])
    np.testing.assert_array_equal(votes, [[(1 + 0.5) / 2], [0.0], [0.0]])


def test_a_veto_counts_whoever_else_abstains() -> None:
    def judge(*order: JudgePart) -> CombinedJudge:
        return CombinedJudge([*order, JudgePart(RecordedScores())])

    class Unsure(Shorter):
        def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
            return [[NAN] + [0.0] * (len(candidate_set.candidates) - 1) for candidate_set in sets]

    vetoes = [JudgePart(Shorter(), weight=0, veto_below=-3), JudgePart(Unsure(), weight=0, veto_below=-3)]
    candidate_set = CandidateSet((Message("user", "p"),), (Candidate("aaaa", score=1.0), Candidate("b", score=0.0)))
    for order in (vetoes, vetoes[::-1]):
        assert judge(*order).score([candidate_set]) == [[0.0, 1.0]]


def test_an_abstention_of_a_part_is_one_unless_a_veto_decides() -> None:
    judge = CombinedJudge(
        [JudgePart(Alphabet()), JudgePart(Shorter(), weight=0, veto_below=-3)],
    )
    (votes,) = judge.cross_votes([make_set("p", "a!", "a?", "bbbb", "a")], [make_set("p", "c", "c?", "dddd")])
    expected = [
        [NAN, NAN, 1.0],  # the alphabet abstains; against a vetoed one it wins all the same
        [NAN, NAN, NAN],  # nobody knows whether "a?" is vetoed
        [0.0, NAN, 0.5],
        [0.7, NAN, 1.0],
    ]
    np.testing.assert_allclose(votes, expected, atol=1e-12)
    (scores,) = judge.score([make_set("p", "a", "c", "a!", "c?")])
    np.testing.assert_allclose(scores, [0.7, 0.3, NAN, NAN], atol=1e-12)


def test_combined_judges_nest_and_wrap_cached_ones(tmp_path: Path) -> None:
    cached = [CachedJudge(judge, str(tmp_path / "v.sqlite")) for judge in (Alphabet(), Shorter())]
    inner = CombinedJudge([JudgePart(cached[0]), JudgePart(cached[1], scale=2.0)])
    plain = CombinedJudge([JudgePart(Alphabet()), JudgePart(Shorter(), scale=2.0)])
    sets = [make_set("p", "a", "bb", "ccc"), make_set("p", "b")]
    outer = CombinedJudge([JudgePart(inner)])
    for judge in (inner, outer):
        for scores, expected in zip(judge.score(sets), plain.score(sets), strict=True):
            np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert cached[1].misses == 4 and inner.parts == tuple(cached)
    with pytest.raises(ValueError, match="CombinedJudge cannot be kept.*wrap its parts instead"):
        CachedJudge(inner)


def test_recorded_scores_take_part() -> None:
    row = CandidateSet((Message("user", "p"),), (Candidate("a", score=1.0), Candidate("bb", score=3.0)))
    (scores,) = CombinedJudge([JudgePart(RecordedScores(), scale=1.0), JudgePart(Shorter(), scale=1.0)]).score([row])
    p = (1 / (1 + math.exp(2)) + 1 / (1 + math.exp(-1))) / 2
    np.testing.assert_allclose(scores, [p, 1 - p], atol=1e-12)


def test_the_identity_names_everything() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"weight": 2},
        {"scale": 2.0},
        {"veto_below": -2.0},
        {"judge": RecordedScores()},
    ]
    judges = [
        CombinedJudge([JudgePart(Alphabet()), JudgePart(**{"judge": Shorter(), **changes})]) for changes in settings
    ]
    assert len({judge.identity for judge in judges}) == 5
    same = CombinedJudge([JudgePart(Alphabet(), weight=0.5), JudgePart(Shorter(), weight=0.5)])
    assert same.identity == judges[0].identity


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "at least one part"),
        ([JudgePart(Shorter(), weight=0, veto_below=1)], "at least one part with a weight above 0"),
        ([JudgePart(Shorter(), weight=-1)], "weight of at least 0 for Shorter, got -1"),
        ([JudgePart(Shorter(), weight=NAN)], "weight of at least 0"),
        ([JudgePart(Shorter(), scale=0)], "scale above 0 for Shorter, got 0"),
        ([JudgePart(Alphabet(), scale=1)], "Alphabet compares and gives no score"),
        ([JudgePart(Alphabet(), veto_below=1)], "Alphabet compares and gives no score"),
        ([JudgePart(Alphabet()), JudgePart(Shorter(), weight=0)], "would say nothing"),
    ],
)
def test_parts_that_make_no_sense(parts: list[JudgePart], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CombinedJudge(parts)


def test_memory_is_given_back_in_all_parts() -> None:
    released = []

    class Heavy(Shorter):
        def release(self) -> None:
            released.append(1)

    CombinedJudge([JudgePart(Heavy()), JudgePart(Heavy())]).release()
    assert released == [1, 1]


def test_a_config_builds_it() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--judge", type=Judge)
    rule = {"class_path": "lit_align.judges.RuleJudge", "init_args": {"rule": "tests.test_judges.longer_is_better"}}
    part = {"judge": rule, "weight": 0.5, "scale": 10, "veto_below": 2}
    config = {"class_path": "lit_align.judges.CombinedJudge", "init_args": {"parts": [part, {"judge": rule}]}}
    judge = parser.instantiate(parser.parse_object({"judge": config})).judge
    (scores,) = judge.score([make_set("p", "a", "bbbb", "cc")])
    assert scores[1] > scores[2] > scores[0] == 0.0, "one letter is vetoed"


def test_votes_from_scores_are_what_a_part_without_scale_gives() -> None:
    (votes,) = CombinedJudge([JudgePart(Shorter())]).cross_votes([make_set("p", "a", "bb")], [make_set("p", "cc")])
    np.testing.assert_array_equal(votes, votes_from_scores([-1, -2], [-2]))
