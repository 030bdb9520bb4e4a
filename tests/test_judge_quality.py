"""A judge's quality: numbers derived by hand, parity with torchmetrics, and judges with faults that must be named."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from lit_align.judges import (
    CachedJudge,
    CombinedJudge,
    Comparison,
    Judge,
    JudgePart,
    PairwiseJudge,
    RecordedScores,
    RuleJudge,
)
from lit_align.judges.quality import bias_warning, calibration, contradiction_warning, longer_wins, quality_of, wilson
from lit_align.records import Candidate, Message, PreferencePair
from lit_align.report.judge import judge_quality, readable


def pairs_of(texts: Sequence[tuple[str, str]]) -> list[PreferencePair]:
    return [
        PreferencePair((Message("user", f"prompt {n}"),), Candidate(chosen), Candidate(rejected))
        for n, (chosen, rejected) in enumerate(texts)
    ]


def mixed(count: int = 60) -> list[PreferencePair]:
    """The better answer says good; half of the time it is the longer one."""
    texts = [(f"good {'a' * (n % 7)}", "bad" if n % 2 else f"bad {'b' * 20}") for n in range(count)]
    return pairs_of(texts)


class Compares(PairwiseJudge):
    """Asks a function of two texts."""

    identity = "compares"

    def __init__(self, function: object) -> None:
        self.function = function
        self.asked: list[Comparison] = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        self.asked += comparisons
        return [self.function(comparison.first, comparison.second) for comparison in comparisons]


def test_the_numbers_by_hand() -> None:
    # Right, right, wrong, tie, abstention; the better answer is longer in the first and the third.
    quality = quality_of("j", [1.0, 0.75, 0.25, 0.5, math.nan], [(30, 10), (10, 20), (20, 10), (10, 30), (5, 1)])
    assert (quality.pairs, quality.abstentions, quality.ties) == (5, 1, 1)
    assert quality.accuracy.value == pytest.approx(2.5 / 4) and quality.accuracy.count == 4
    assert quality.length.longer_is_right.value == pytest.approx(0.5)
    assert quality.length.longer_is_wrong.value == pytest.approx(0.75)
    assert quality.length.longer_rule.value == pytest.approx(0.5)
    # Preference .5, .25, -.25, 0 against differences 20, -10, 10, -20.
    expected = (10 - 2.5 - 2.5) / math.sqrt(0.375 * 1000)
    assert quality.length.correlation == pytest.approx(expected)
    assert quality.length.of_labels == pytest.approx(0.0)
    assert quality.calibration is not None
    assert quality.calibration.brier == pytest.approx((0 + 1 / 16 + 9 / 16 + 1 / 4) / 4)
    # Confidences 1, .75, .75, .5 in three bins, right 1, .5 and .5 of the time.
    assert quality.calibration.error == pytest.approx((0 + 2 * 0.25 + 0) / 4)
    assert [group.count for group in quality.calibration.bins] == [1, 2, 1]


def test_wilson_s_interval_is_the_textbook_s() -> None:
    # 15 of 20 at 95 %, from the formula worked out by hand.
    assert wilson(0.75, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)
    assert wilson(1.0, 10)[1] == 1.0 and wilson(0.0, 10)[0] == 0.0
    coverage = np.mean([low <= 0.7 <= high for low, high in (wilson(k / 50, 50) for k in rng_binomial())])
    assert 0.93 < coverage < 0.97


def rng_binomial() -> list[int]:
    return np.random.default_rng(0).binomial(50, 0.7, 4000).tolist()


def test_pairs_of_a_prompt_that_agree_count_as_one() -> None:
    votes, lengths = [1.0, 0.0] * 20, [(2, 1)] * 40
    alone = quality_of("j", votes, lengths).accuracy
    copies = quality_of("j", [v for v in votes for _ in range(5)], lengths * 5, groups=[n // 5 for n in range(200)])
    assert copies.accuracy.value == alone.value
    assert (copies.accuracy.low, copies.accuracy.high) == pytest.approx((alone.low, alone.high))
    unlike = quality_of("j", votes, lengths, groups=[n // 2 for n in range(40)])  # a right and a wrong one each
    assert (unlike.accuracy.low, unlike.accuracy.high) == pytest.approx((alone.low, alone.high))


def test_calibration_equals_torchmetrics() -> None:
    votes = np.random.default_rng(1).random(500)
    # Both directions of each pair make a balanced set of labels, and 20 bins of [0, 1] ours of [0.5, 1].
    predictions, labels = np.concatenate([votes, 1 - votes]), np.concatenate([np.ones(500), np.zeros(500)])
    expected = binary_calibration_error(torch.tensor(predictions), torch.tensor(labels).int(), n_bins=20)
    assert calibration(votes).error == pytest.approx(float(expected), abs=1e-6)


def test_a_calibrated_judge_has_a_small_error_and_an_overconfident_one_a_large() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(20_000)
    right = rng.random(20_000) < p  # P(a wins) comes true
    votes = np.where(right, p, 1 - p)
    assert calibration(votes).error < 0.015
    sharper = np.clip(0.5 + 3 * (votes - 0.5), 0, 1)
    assert calibration(sharper).error > 0.15


def test_a_judge_of_position_is_named() -> None:
    quality = judge_quality(Compares(lambda first, second: 0.9), mixed())
    assert quality.order is not None and quality.order.position_decides.value == 1.0
    assert quality.order.first_place == 60 and quality.ties == 60
    assert "prefers by order" in quality.warnings[0] and "mostly the first" in quality.warnings[0]
    assert "prefers by order" in readable(quality)


@pytest.mark.parametrize(("sign", "word"), [(1, "longer"), (-1, "shorter")])
def test_a_judge_of_length_is_named(sign: int, word: str) -> None:
    by_length = RuleJudge(lambda prompt, candidates, row: [sign * len(text) for text in candidates])
    quality = judge_quality(by_length, mixed())
    assert len(quality.warnings) == 1 and f"whose {word} answer is the better" in quality.warnings[0]
    assert sign * (quality.length.correlation or 0) > 0.5
    assert quality.order is None and quality.calibration is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_judge_of_one_s_own_that_says_so_gives_probabilities(tmp_path: Path, wrapped: bool) -> None:
    class Bradley(RuleJudge):
        cacheable = True
        gives_probabilities = True

    judge: Judge = Bradley(lambda prompt, candidates, row: [2.0 * ("good" in text) for text in candidates])
    if wrapped:
        judge = CachedJudge(judge, str(tmp_path / "verdicts.sqlite"))
    quality = judge_quality(judge, mixed())
    assert quality.calibration is not None and quality.order is None
    assert quality.calibration.brier == pytest.approx((1 - 1 / (1 + math.exp(-2.0))) ** 2)


def test_a_good_judge_is_not_accused() -> None:
    good = Compares(lambda first, second: 0.8 if "good" in first else 0.2)
    quality = judge_quality(good, mixed())
    assert quality.accuracy.value == 1.0 and quality.warnings == ()
    assert quality.order is not None and quality.order.same_verdict.value == 1.0
    assert "whether that is the longer or the shorter one" in readable(quality)
    assert quality.calibration is not None and quality.calibration.error == pytest.approx(0.2)
    assert len(good.asked) == 120 and good.asked[1].first == good.asked[0].second


def test_a_coin_is_named_and_few_pairs_are_not_enough() -> None:
    rng = random.Random(0)
    coin = RuleJudge(lambda prompt, candidates, row: [rng.random() for _ in candidates])
    assert "coin" in judge_quality(coin, mixed()).warnings[0]
    same_length = pairs_of([("good", "badd")] * 30)
    rule_judge = RuleJudge(lambda prompt, candidates, row: [float(text == "good") for text in candidates])
    assert "these pairs do not tell" in " ".join(readable(judge_quality(rule_judge, same_length)).split())


def test_a_judge_that_is_worse_than_a_coin_is_called_that() -> None:
    turned = RuleJudge(lambda prompt, candidates, row: [-float("good" in text) for text in candidates])
    quality = judge_quality(turned, mixed())
    assert quality.accuracy.value == 0 and len(quality.warnings) == 1
    assert "worse than a coin: it is right in 0 % (0 to 6) of the pairs. Are chosen and rejected swapped" in " ".join(
        readable(quality).split()
    )
    assert "coin's" not in readable(quality)


def test_labels_are_held_against_verdicts() -> None:
    assert contradiction_warning([0.0] * 6, range(6)) is None
    assert "right in 0 % (0 to 49) of 7 labelled pairs" in (contradiction_warning([0.0] * 7, range(7)) or "")
    assert contradiction_warning([0.0] * 70, [n // 10 % 3 for n in range(70)]) is None  # three prompts say little
    assert contradiction_warning([0.5] * 70, range(70)) is None and contradiction_warning([], []) is None
    assert contradiction_warning([0.0, 1.0, 0.0] * 9, range(27)) is None
    assert contradiction_warning([0.0, 1.0, 0.0] * 30, range(90)) is not None


def test_a_judge_made_of_several_is_asked_as_one() -> None:
    word = RuleJudge(lambda prompt, candidates, row: [float("good" in text) for text in candidates])
    length = RuleJudge(lambda prompt, candidates, row: [len(text) for text in candidates])
    combined = CombinedJudge([JudgePart(word, weight=3.0), JudgePart(length)])
    quality = judge_quality(combined, mixed())
    assert quality.accuracy.value == 1.0 and quality.order is None
    assert quality.calibration is not None and quality.calibration.brier == pytest.approx(
        np.mean([0, 1 / 16]), abs=0.01
    )


def test_a_rule_that_looks_at_the_place_gains_nothing() -> None:
    first = RuleJudge(lambda prompt, candidates, row: [1.0, 0.0])
    accuracy = judge_quality(first, mixed(400)).accuracy
    assert accuracy.low < 0.5 < accuracy.high


def test_abstentions_count_nowhere_but_are_told() -> None:
    abstaining = Compares(
        lambda first, second: math.nan if "b" * 20 in first + second else 1.0 if "good" in first else 0.0
    )
    quality = judge_quality(abstaining, mixed())
    assert (quality.abstentions, quality.accuracy.count, quality.accuracy.value) == (30, 30, 1.0)
    none = judge_quality(Compares(lambda first, second: math.nan), mixed())
    assert none.accuracy.value is None and "no verdict at all" in readable(none)


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        judge_quality(Compares(lambda first, second: 1.5), mixed())
    with pytest.raises(ValueError, match="labelled pairs"):
        judge_quality(RecordedScores(), [])


def test_what_votes_alone_give_away() -> None:
    rng = np.random.default_rng(0)
    on, off = rng.integers(10, 90, (20, 2)), rng.integers(10, 90, (20, 3))
    by_length = [np.where(np.subtract.outer(a, b) > 0, 1.0, 0.0) for a, b in zip(on, off, strict=True)]
    fair = [np.asarray(rng.random((2, 3)) > 0.5, dtype=float) for _ in on]
    warning = bias_warning(by_length, on.tolist(), off.tolist())
    assert warning is not None and "longer answer won" in warning and "length alone" in warning
    shorter = bias_warning([1 - block for block in by_length], on.tolist(), off.tolist())
    assert shorter is not None and "shorter answer won" in shorter
    assert bias_warning(fair, on.tolist(), off.tolist()) is None
    ties = bias_warning([np.full((2, 3), 0.5) for _ in on], on.tolist(), off.tolist())
    assert ties is not None and "ties" in ties
    # 2 > 1 wins, 2 < 3 loses, 5 > 1 is a tie, 5 > 3 abstains: the longer won both that count.
    block = np.array([[1.0, 0.0], [0.5, np.nan]])
    share = longer_wins([block], [[2, 5]], [[1, 3]])
    assert (share.value, share.count) == (1.0, 2)
    assert longer_wins([], [], []).value is None and bias_warning([], [], []) is None
