from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_align.boundary import BoundaryResult, BoundaryScore, measure_sets
from lit_align.boundary.interval import mean_interval, student_t_quantile
from lit_align.cli.measure import measure_recorded
from lit_align.judges import RecordedScores, RuleJudge
from lit_align.records import Candidate, CandidateSet, Message, Stage
from tests.helpers.boundary_fakes import by_number, number_sets
from tests.helpers.processes import on_two_ranks

NAN = float("nan")


# -- the metric


def test_each_prompt_weighs_the_same() -> None:
    metric = BoundaryScore()
    metric.update([np.array([[1.0, 1.0, 0.0, 0.5]])])  # share 2.5 / 4
    metric.update([np.array([[0.0]]), np.array([[0.9], [0.2]])])  # shares 0 and 1 / 2
    result = metric.result(seconds=2.0)
    assert result.score == pytest.approx((0.625 + 0.0 + 0.5) / 3, abs=1e-15)
    assert (result.votes_on, result.votes_off, result.ties) == (3, 3, 1)
    assert (result.prompts, result.abstentions, result.seconds) == (3, 0, 2.0)


def test_equal_numbers_of_candidates_give_the_paper_s_share_of_votes() -> None:
    votes = [np.array(random.Random(n).choices([0.0, 1.0], k=8)).reshape(2, 4) for n in range(30)]
    metric = BoundaryScore()
    metric.update(votes)
    result = metric.result()
    assert result.score == pytest.approx(result.votes_on / (result.votes_on + result.votes_off), abs=1e-12)


def test_swapping_the_sides_mirrors_everything() -> None:
    votes = [np.array([[1.0, 0.5], [0.0, 1.0]]), np.array([[0.7, 0.1, NAN]])]
    one, other = BoundaryScore(), BoundaryScore()
    one.update(votes)
    other.update([1.0 - block.T for block in votes])
    a, b = one.result(), other.result()
    assert (a.score, a.low, a.high) == pytest.approx((1 - b.score, 1 - b.high, 1 - b.low), abs=1e-12)
    assert (a.votes_on, a.votes_off, a.ties, a.abstentions) == (b.votes_off, b.votes_on, b.ties, b.abstentions)


def test_an_abstention_is_no_vote_and_a_silent_prompt_no_prompt() -> None:
    metric = BoundaryScore()
    metric.update([np.array([[1.0, NAN]]), np.array([[NAN, NAN]])])
    result = metric.result()
    assert (result.score, result.prompts, result.votes_on, result.abstentions) == (1.0, 1, 1, 3)


def test_errors_of_the_metric() -> None:
    with pytest.raises(ValueError, match=r"P\(on-policy wins\) in \[0, 1\]"):
        BoundaryScore().update([np.array([[1.2]])])
    empty = BoundaryScore()
    empty.update([np.array([[NAN]])])
    with pytest.raises(ValueError, match="no prompt has a cross vote .1 abstentions"):
        empty.compute()
    with pytest.raises(ValueError, match="confidence"):
        BoundaryScore(confidence=95)


def test_it_is_a_metric_like_any_other() -> None:
    metric = BoundaryScore()
    metric.update([np.ones((2, 2))])
    again = pickle.loads(pickle.dumps(metric))
    assert again.result() == metric.result()
    found = metric.compute()
    assert found["stage"] == 1 and all(value.shape == () for value in found.values())
    metric.reset()
    assert int(metric.prompts) == 0
    assert metric.shares.dtype == torch.float64 and metric.votes_on.dtype == torch.int64


def result_with(score: float, low: float, high: float) -> BoundaryResult:
    return BoundaryResult(score, low, high, prompts=32, votes_on=1, votes_off=1, ties=0)


def test_stage_and_decided() -> None:
    assert result_with(0.499, 0.4, 0.6).stage is Stage.INJECTION
    assert result_with(0.5, 0.4, 0.6).stage is Stage.FINE_TUNING
    assert not result_with(0.5, 0.4, 0.6).decided and not result_with(0.6, 0.5, 0.7).decided
    assert result_with(0.6, 0.51, 0.7).decided and result_with(0.4, 0.3, 0.49).decided


# -- two processes count what one would have counted


def _blocks() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.choice([0.0, 0.5, 1.0, NAN], size=(2, 3)) for _ in range(21)]


def _measured_on_a_rank() -> tuple[BoundaryResult, BoundaryResult]:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    metric = BoundaryScore()
    metric.update(_blocks()[rank::2])
    sets, alone = number_sets(5), number_sets(5, [2.5, 3.0])
    mine = slice(0, 5) if rank == 0 else slice(0, 0)  # a rank may be left without prompts
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = measure_sets(alone[mine], sets[mine], RuleJudge(by_number))
    return metric.result(), measured


def test_two_processes_reduce_to_what_one_counts(tmp_path: Path) -> None:
    first, second = on_two_ranks(tmp_path, _measured_on_a_rank)
    alone = BoundaryScore()
    alone.update(_blocks())
    assert first[0] == second[0]
    apart = {"characteristics", "method", "stopped"}
    one, other = ({k: v for k, v in vars(r).items() if k not in apart} for r in (first[0], alone.result()))
    assert one == pytest.approx(other, abs=1e-12)
    assert first[1].prompts == second[1].prompts == 5
    assert first[1].score == second[1].score == (2 * 4 + 1) / 16  # 2.5 beats two of four; 3 beats two, ties with one


# -- the interval


@pytest.mark.parametrize(
    ("degrees", "table"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (10, 2.228), (31, 2.040), (120, 1.980)]
)
def test_student_t_against_the_printed_table(degrees: int, table: float) -> None:
    assert student_t_quantile(0.975, degrees) == pytest.approx(table, abs=6e-4)


def test_the_interval_by_hand() -> None:
    # Values 1, 1, 0.5 with 0 and 1 added: mean 0.7, squared deviations 0.09 + 0.09 + 0.04 + 0.49 + 0.09 = 0.8,
    # variance 0.2, standard error 0.2; t(0.975, 4) = 2.776.
    low, high = mean_interval(2.5, 2.25, 3, 0.95)
    assert low == pytest.approx(0.7 - 2.776 * 0.2, abs=1e-3)
    assert high == 1.0


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5, 50, 2000])
def test_the_interval_stays_open_where_all_agree(value: float, count: int) -> None:
    low, high = mean_interval(value * count, value**2 * count, count, 0.95)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 1 / (count + 2)
    assert count > 4 or low <= 0.5 <= high, "four prompts cannot decide"


def test_the_interval_shrinks_with_prompts_and_grows_with_confidence() -> None:
    widths = []
    for count, confidence in [(20, 0.95), (200, 0.95), (200, 0.99)]:
        low, high = mean_interval(0.5 * count, 0.4 * count, count, confidence)
        widths.append(high - low)
    assert widths[0] > widths[2] > widths[1]


def _votes(true: float, generator: np.random.Generator, shape: tuple[int, int], votes: int) -> np.ndarray:
    """Shares of prompts whose chances differ: all alike (votes=1 is a coin) or mostly one-sided."""
    chances = generator.beta(2 * true, 2 * (1 - true), size=shape)
    return generator.binomial(votes, chances) / votes


@pytest.mark.parametrize("votes", [1, 8])
@pytest.mark.parametrize("count", [8, 32, 128])
@pytest.mark.parametrize("true", [0.1, 0.34, 0.5, 0.7, 0.9])
def test_the_interval_covers_the_true_score_as_often_as_it_says(true: float, count: int, votes: int) -> None:
    generator = np.random.default_rng(int(1000 * true) + count + votes)
    shares = _votes(true, generator, (1500, count), votes)
    totals, squares = shares.sum(1), (shares**2).sum(1)
    intervals = [mean_interval(t, s, count, 0.95) for t, s in zip(totals, squares, strict=True)]
    covered = np.mean([low <= true <= high for low, high in intervals])
    assert covered > 0.93, covered


# -- measuring two piles


def chat(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def scored(prompt: str, *scores: float, where: str = "") -> CandidateSet:
    return CandidateSet(chat(prompt), tuple(Candidate(f"{s}", score=s) for s in scores), where=where)


def test_sets_are_matched_by_prompt_not_by_place() -> None:
    on = [scored("a", 0.9), scored("b", 0.1)]
    off = [scored("c", 0.0), scored("b", 0.5), scored("a", 0.5)]
    result = measure_sets(on, off, RecordedScores())
    assert (result.score, result.votes_on, result.votes_off, result.prompts) == (0.5, 1, 1, 2)
    assert measure_sets(on, off[1:], RecordedScores()).score == 0.5
    assert result.seconds > 0


def test_several_sets_of_a_prompt_are_taken_together() -> None:
    on, off = [scored("a", 0.9), scored("a", 0.2)], [scored("a", 0.5), scored("a", 0.1), scored("a", 0.95)]
    result = measure_sets(on, off, RecordedScores())
    assert (result.prompts, result.votes_on, result.votes_off) == (1, 3, 3)


def test_prompts_without_a_partner_are_counted() -> None:
    on = [scored("a", 0.9), scored("b", 0.9, where="on.jsonl:2"), scored("c", 0.9)]
    with pytest.warns(UserWarning, match=r"2 of 3 on-policy prompts have no off-policy candidates.*'b' \(on.jsonl:2\)"):
        assert measure_sets(on, [scored("a", 0.1)], RecordedScores()).prompts == 1
    with (
        pytest.warns(UserWarning, match="off-policy candidates"),
        pytest.raises(ValueError, match="no prompt has a cross vote"),
    ):
        measure_sets(on, [scored("z", 0.1)], RecordedScores())


def test_sets_without_candidates_are_no_prompts() -> None:
    result = measure_sets([scored("a", 1.0), scored("b")], [scored("a", 0.0), scored("b", 0.5)], RecordedScores())
    assert result.prompts == 1


# -- real answers with real verdicts


def alpaca_eval() -> list[dict[str, Any]]:
    root = os.environ.get("LIT_ALIGN_SHARED_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    path = Path(root, "alpaca_eval", "candidates.jsonl.gz")
    if not path.is_file():
        pytest.skip(f"no AlpacaEval candidates at {path} (set LIT_ALIGN_SHARED_DATA to the folder that holds them)")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def split(rows: Sequence[dict[str, Any]], policy: str) -> tuple[list[CandidateSet], list[CandidateSet]]:
    """One model's answers as the policy's, all others' as the static pool."""
    sides: tuple[list[CandidateSet], list[CandidateSet]] = ([], [])
    for row in rows:
        for side, mine in zip(sides, (True, False), strict=True):
            kept = [c for c in row["candidates"] if (c["model"] == policy) == mine]
            candidates = tuple(Candidate(c["text"], score=c["score"], model=c["model"]) for c in kept)
            side.append(CandidateSet(chat(row["prompt"]), candidates, where=row["id"]))
    return sides


def directly(rows: Sequence[dict[str, Any]], policy: str) -> dict[str, float]:
    shares, on, off, ties = [], 0, 0, 0
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).extend(row["candidates"])
    for candidates in by_prompt.values():
        mine = [c["score"] for c in candidates if c["model"] == policy]
        others = [c["score"] for c in candidates if c["model"] != policy]
        outcomes = [np.sign(a - b) for a in mine for b in others]
        if outcomes:
            shares.append(np.mean([(outcome + 1) / 2 for outcome in outcomes]))
            on, off, ties = on + outcomes.count(1), off + outcomes.count(-1), ties + outcomes.count(0)
    return {"score": float(np.mean(shares)), "prompts": len(shares), "votes_on": on, "votes_off": off, "ties": ties}


def test_real_models_against_a_pool_of_others() -> None:
    rows = alpaca_eval()
    models = sorted({c["model"] for row in rows for c in row["candidates"]})
    scores = {}
    for policy in models:
        result = measure_sets(*split(rows, policy), RecordedScores())
        expected = directly(rows, policy)
        assert {name: getattr(result, name) for name in expected} == pytest.approx(expected, abs=1e-9)
        assert 0 < result.low < result.score < result.high < 1
        scores[policy] = result
    weakest, strongest = (pick(scores.values(), key=lambda r: r.score) for pick in (min, max))
    assert weakest.stage is Stage.INJECTION and strongest.stage is Stage.FINE_TUNING
    assert weakest.decided and strongest.decided


def test_on_real_models_few_prompts_decide_as_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = alpaca_eval()
    monkeypatch.setattr("lit_align.boundary.measurement.characteristics", lambda *_, **__: {})  # they take the time
    used, needed = 0, 0
    for policy in sorted({c["model"] for row in rows for c in row["candidates"]}):
        on, off = split(rows, policy)
        whole = measure_sets(on, off, RecordedScores())
        for seed in range(3):
            found = measure_recorded(on, off, seed=seed)
            assert found.stage is whole.stage and found.low <= found.score <= found.high
            used, needed = used + found.prompts, needed + whole.prompts
    assert used < needed / 4
