"""The experiments: an arm runs once and for all, and tables come out of records with numbers derived by hand."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from experiments import (
    arithmetic,
    crossing,
    kept,
    lists,
    plan,
    plots,
    predictors,
    run_tables,
    runs,
    sampled,
    stats,
    tables,
)
from experiments.arm import Arm
from experiments.forks import Fork, read_forks, read_start
from experiments.report import write_report
from experiments.runner import Records, _without_prose, run
from experiments.setup import Setup
from experiments.tasks import CoinAtTies, constraint_rows, list_rows
from lit_align.boundary.result import Decision
from lit_align.judges.vote_arrays import graded_votes
from lit_align.records import Candidate
from tests.helpers.tiny import save_tiny_model

SVG = "{http://www.w3.org/2000/svg}"
SETUP = Setup(fork_steps=2, batch_size=3, fork_prompts=2, evaluation_prompts=4)
SCOUT = Arm("lists", 0, (), "off", 2)
ON = replace(SCOUT, schedule="on")


def decision(score: float = 0.5, seconds: float = 1.0, **changes: Any) -> dict[str, Any]:
    values = {"step": 0, "stage": "injection", "on_policy_share": 0.0, "reason": "", "score": score, "low": 0.1}
    sides = {"on_policy": {"candidates": 2.0}, "off_policy": {"candidates": 3.0}}
    values |= {"high": 0.9, "prompts": 2, "seconds": seconds, "characteristics": sides}
    values |= {"votes_on": 1, "votes_off": 1, "ties": 0}
    return Decision.from_record({**values, **changes}).record()


def record(arm: Arm, *evaluations: tuple[int, float, Sequence[float]], **changes: Any) -> dict[str, Any]:
    """A record with evaluations of (step, seconds, scores)."""
    base = {
        "arm": asdict(arm),
        "setup": asdict(SETUP),
        "evaluations": [
            {"step": s, "seconds": t, "cpu_seconds": t, "scores": list(scores)} for s, t, scores in evaluations
        ],
        "decisions": [],
        "measured": [],
        "rounds": [],
        "code": "c0de",
        "wall_seconds": 3600.0,
        "threads": 1,
        "device": "cpu",
        "finished": "2026-01-01 00:00:00",
    }
    return base | changes


def measured(on: Sequence[Sequence[float]], off: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    sides = [[[{"text": "", "score": s} for s in scores] for scores in side] for side in (on, off)]
    return [{"on_policy": a, "off_policy": b} for a, b in zip(*sides, strict=True)]


def two_arms() -> dict[Arm, dict[str, Any]]:
    """Four evaluation prompts: off wins 1, ties 2, loses 1; on wins 3, ties 1. Measured on two prompts."""
    scout = record(
        SCOUT,
        (0, 0.0, [0.0, 0.5, 0.5, 0.5]),
        (2, 7.0, [1.0, 0.5, 0.5, 0.0]),
        decisions=[decision(0.5625, seconds=1.0)],
        measured=measured([[1.0, 1.0], [0.0, 0.5]], [[0.0, 1.0], [0.0, 0.5]]),
    )
    rounds = [{"candidates": 8, "reused": 0, "sample_seconds": 2.0, "judge_seconds": 0.5}]
    return {SCOUT: scout, ON: record(ON, (2, 12.0, [1.0, 1.0, 1.0, 0.5]), rounds=rounds)}


# ---------------------------------------------------------------------- tasks


def test_a_list_is_graded_by_its_words() -> None:
    row = {"answer": "3, 7, 9, 12"}
    texts = ["3, 7, 9, 12.", "3 7 12 9", "Sorted: 3, 7, 9, 12", "3, 7, 9", "", "beehome"]
    assert lists.graded("", texts, row) == [1.0, 0.5, 0.8, 0.75, 0.0, 0.0]


def test_an_arithmetic_answer_is_graded_by_its_last_number() -> None:
    row = {"answer": "68"}
    texts = ["68.", "23 + 45 = 68", "66", "The answer is 68, or 78.", "sixty-eight", "9999999999999999999"]
    assert arithmetic.graded("", texts, row)[:5] == [1.0, 1.0, 0.25, 0.05, 0.0]
    assert 0 < arithmetic.graded("", texts, row)[5] < 1e-5


def test_arithmetic_problems_are_all_different_and_right() -> None:
    teaching, (train, held_out) = arithmetic.teaching_rows(), arithmetic.open_rows()
    rows = [*train, *held_out]
    assert (len(teaching), len(train), len(held_out)) == (
        120,
        420,
        240,
    ) and arithmetic.problems() == arithmetic.problems()
    assert len({row["prompt"] for row in [*teaching, *rows]}) == 780
    for row in rows:
        a, sign, b = re.findall(r"\d+|[+-]", row["prompt"])
        assert row["answer"] == str(int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_static_candidates_come_from_the_base_and_from_one_that_was_taught(tmp_path: Path, tiny_model: Path) -> None:
    setup = replace(
        SETUP, model=str(tiny_model), dtype="float32", lora_rank=4, max_new_tokens=3, learning_rates={"rpo": 0.05}
    )
    rows = [{"prompt": f"Compute {n} + 0.", "answer": "7777"} for n in range(20, 26)]

    def texts(right: str) -> list[list[str]]:
        teaching = [{"prompt": f"What is {n} + 0?", "chosen": right, "rejected": "0."} for n in range(12)]
        train, held_out = sampled.with_candidates(
            teaching, [rows[:4], rows[4:]], "experiments.arithmetic.graded", setup
        )
        assert [row["prompt"] for row in train] == [row["prompt"] for row in rows[:4]] and len(held_out) == 2
        return [[candidate["text"] for candidate in row["candidates"]] for row in train]

    first, second = texts("7777."), texts("tea tea.")
    assert all(len(set(row)) == 4 for row in first)
    assert [row[:2] for row in first] == [row[:2] for row in second], "the base model's"
    assert [row[2:] for row in first] != [row[2:] for row in second], "those of one that was taught"


@pytest.mark.parametrize("make", [list_rows, constraint_rows])
def test_rows_are_the_same_each_time_and_held_out(make: Any) -> None:
    train, held_out = make(SETUP)
    assert make(SETUP) == (train, held_out)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert len(train) > 350 and len(held_out) > 200
    assert all(len({candidate["text"] for candidate in row["candidates"]}) == 4 for row in train)


def test_a_coin_decides_between_equal_answers() -> None:
    selector, counts = CoinAtTies(), Counter[str]()
    tied = [Candidate("a", 1.0), Candidate("b", 1.0), Candidate("c", 1.0)]
    chosen_texts = {selector.choose(tied, random.Random(seed), counts)[0][0].text for seed in range(20)}
    assert chosen_texts == {"a", "b", "c"} and counts["ties"] == 20
    ranked = [Candidate("a", 1.0), Candidate("b", 1.0), Candidate("c", 0.0)]
    assert selector.choose(ranked, random.Random(0), counts) == [(ranked[0], ranked[2])]


# ---------------------------------------------------------------------- plan and runner


def test_each_arm_comes_once_and_after_its_start() -> None:
    arms = [arm for table in plan.TABLES.values() for arm in table(SETUP, [0, 1, 2])]
    ordered = plan.with_parents(arms)
    runs_of_a_seed = len(plan.SHORT_RUNS) + 1 + len(plan.LONG_RUNS)  # one more with WPO
    # Forks, diverse arms, variants, runs; the rest are forks, too.
    assert len(ordered) == len(set(arms)) == 144 + 6 * 2 + 21 + 3 * (runs_of_a_seed + 6 + len(plan.SAMPLED_RUNS))
    assert plan.arms_of(plan.TABLES, SETUP, [0, 1, 2]) == ordered
    more = set(plan.arms_of(["table3"], SETUP)) - set(ordered)
    assert {arm.seed for arm in more} == {3, 4, 5}
    assert {arm.schedule for arm in more} == set(plan.SHORT_RUNS) - set(plan.ON_THREE_SEEDS)
    place = {arm: index for index, arm in enumerate(ordered)}
    assert all(
        place[arm.parent] < index and plan.saves_adapter(arm.parent) for arm, index in place.items() if arm.parent
    )
    assert {str(arm) for arm in ordered if arm.scouts and arm.task == "lists" and arm.seed == 0} == {
        "lists_s0_base_off_rpo", "lists_s0_off_off_rpo", "lists_s0_off+off_off_rpo"
    }  # fmt: skip


def test_prose_does_not_change_the_version_of_the_code() -> None:
    plain = b"def f(x):\n    return x\n"
    assert _without_prose(b'def f(x):  # why\n    """What."""\n\n    return x\n') == _without_prose(plain)
    assert _without_prose(b"def f(x):\n    return -x\n") != _without_prose(plain)


def test_an_arm_runs_once_and_a_failed_one_is_named(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    setup = Setup(
        str(model), dtype="float32", lora_rank=2, fork_steps=2, batch_size=2, answers=2, round_prompts=4,
        max_new_tokens=4, fork_prompts=8, run_prompts=4, evaluation_prompts=4,
    )  # fmt: skip
    records = Records(tmp_path / "results", setup)
    fork = Arm("constraints-coin", 0, ("off",), "on", 2)
    assert fork.parent is not None
    broken, orphan = Arm("no-such-task", 0, (), "off", 2), Arm("no-such-task", 0, ("off",), "off", 2)
    leftovers = tmp_path / "results" / "running" / str(fork)
    leftovers.mkdir(parents=True)
    (leftovers / "boundary.jsonl").write_text("half a line")  # of an arm that was killed

    varied = replace(fork, variant="8-answers")
    semi_online = Arm("constraints-coin", 0, (), "semi-online-2", 4, loss="wpo", evaluate_every=2)

    failed = run([fork, orphan, varied, semi_online], setup, records.folder, workers=1)
    assert [line.split(":")[0] for line in failed] == [str(broken), str(orphan)]
    written = {path: path.stat().st_mtime_ns for path in (records.folder / "arms").iterdir()}
    assert written.keys() == {records.path(arm) for arm in (fork, fork.parent, varied, semi_online)}
    assert run([fork], setup, records.folder, workers=1) == []
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert not records.finished(replace(fork, seed=1)) and not leftovers.exists()
    other = Records(records.folder, replace(setup, learning_rates={"rpo": 1.0}))
    assert not other.finished(fork)

    finished = records.read([fork, fork.parent, varied, semi_online])
    assert [row["prompts"] for row in finished[semi_online]["rounds"]] == [4, 4], "two steps of two pairs each"
    assert all(row["cpu_seconds"] > 0 for row in finished[semi_online]["evaluations"])
    assert finished[varied]["setup"] == {**asdict(setup), "answers": 8}
    assert finished[varied]["rounds"][0]["candidates"] == 32 and finished[varied]["rounds"][0]["prompts"] == 4
    start = read_start(fork.parent, finished[fork.parent])
    assert len(start.on) == 8 and len(start.scores) == 4
    assert predictors.published(start) + 0.5 == pytest.approx(start.decision.score, abs=1e-12)
    assert [evaluation["step"] for evaluation in finished[fork.parent]["evaluations"]] == [0, 2]
    assert finished[fork]["rounds"][0]["candidates"] == 8 and finished[fork]["decisions"][0]["on_policy_share"] == 1
    assert "No arm" not in write_report(records, [fork], "test").read_text(encoding="utf-8").splitlines()[2]


# ---------------------------------------------------------------------- numbers


def test_intervals() -> None:
    assert stats.wilson(8, 10) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)
    assert stats.wilson(0, 0)[1:] == (0.0, 1.0)
    half = 4.302653 / math.sqrt(3)  # t of 2 degrees of freedom, standard deviation 1
    assert stats.mean_of([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-5)
    assert math.isnan(stats.mean_of([1.0]).low)
    assert stats.auc([0.1, 0.5, 0.5, 0.9], [False, True, False, True]) == (1 + 0.5 + 1 + 1) / 4
    assert math.isnan(stats.auc([1.0], [True]))
    share = stats.bootstrap([[1.0], [0.0]], lambda values: sum(values) / len(values))
    assert share == (0.5, 0.0, 1.0)


def test_a_fork_has_the_gains_of_its_arms() -> None:
    (win,), (score,) = read_forks(two_arms(), "win"), read_forks(two_arms(), "score")
    assert win.off.each == [0.5, 0.0, 0.0, -0.5] and win.on.each == [0.5, 0.5, 0.5, 0.0]
    assert (win.off.mean, win.on.mean, win.difference.value) == (0.0, 0.375, 0.375)
    assert (score.off.mean, score.on.mean) == (0.125, 0.5)
    assert (win.off.seconds, win.on.seconds) == (6.0, 12.0)  # the scout's second of measuring is not training's
    assert (win.on.judged, win.on.pairs) == (8, 6)
    assert win.on_pays is True and score.on_pays_by_the_second is True  # 0.5 / 12 against 0.125 / 6
    assert read_forks({ON: two_arms()[ON]}, "win") == []


def test_predictors_by_hand() -> None:
    start = read_forks(two_arms(), "win")[0].start
    # Prompt 1: [1, 1] against [0, 1]: two won, two tied. Prompt 2: [0, .5] against [0, .5]: one won, one lost.
    assert predictors.published(start) == pytest.approx((0.75 + 0.5) / 2 - 0.5)
    assert predictors.without_ties(start) == pytest.approx(3 / 4 - 0.5)
    assert predictors.graded_margin(start) == pytest.approx((1 + 0.25) / 2 - (0.5 + 0.25) / 2)
    relative = [graded_votes(on, off).mean() for on, off in zip(start.on, start.off, strict=True)]
    assert predictors.relative_margin(start) == pytest.approx((0.25 + 0.0) / 2)
    assert predictors.relative_margin(start) == pytest.approx(sum(relative) / 2 - 0.5), "as `graded: true` measures it"
    assert predictors.best_against_best(start) == 0.0
    assert predictors.chosen_margin(start) == pytest.approx(0.5 - 0.75)
    assert predictors.contrast(start) == pytest.approx((0 + 0.5) / 2 - (1 + 0.5) / 2)
    on, off = 0.625 * 0.5, 0.375 * 1.0
    assert predictors.by_yield(start) == pytest.approx(on / (on + off) - 0.5)
    on, off = 0.625 * 0.5 / 2, 0.375 / 1
    assert predictors.by_cost(2.0, 1.0)(start) == pytest.approx(on / (on + off) - 0.5)
    sides = {"on_policy": {"x": 3.0}, "off_policy": {"x": 1.0}}
    with_figures = replace(start, decision=Decision.from_record({**start.decision.record(), "characteristics": sides}))
    assert predictors.figure("x", -1)(with_figures) == -2.0 and predictors.figure("y")(with_figures) == 0.0


def forks_with(scores: Sequence[float], on_pays: Sequence[bool]) -> list[Fork]:
    """Forks of one prompt each, of as many trajectories, whose share of votes is the score, 0.25 apart."""
    (fork,) = read_forks(two_arms(), "win")
    forks = []
    for seed, (score, pays) in enumerate(zip(scores, on_pays, strict=True)):
        won = round(score * 4)
        start = replace(fork.start, arm=replace(SCOUT, seed=seed), on=[[1.0] * won + [0.0] * (4 - won)], off=[[0.5]])
        gains = [replace(fork.on, each=[g, g]) for g in ((0.5, 0.0) if pays else (0.0, 0.5))]
        forks.append(replace(fork, start=start, on=gains[0], off=gains[1]))
    return forks


def test_how_often_a_predictor_is_right() -> None:
    forks = forks_with([0.0, 0.25, 0.75, 1.0], [False, True, True, True])
    right = predictors.accuracy(predictors.published, lambda f: f.on_pays, forks)
    area = predictors.ranking(predictors.published, lambda f: f.on_pays, forks)
    assert right.value == 0.75 and 0 <= right.low < 0.75 < right.high <= 1
    assert area.value == 1.0
    rows = {row[0]: row[1:] for row in tables.how_often_right(forks, "win").rows}
    assert rows["all"] == ["4", "3", str(stats.wilson(3, 4))]
    assert rows["score 0.2 to 0.5 from 0.5"][:2] == ["4", "3"] and rows["score 0 to 0.05 from 0.5"][0] == "0"
    assert rows["all, had it always said off-policy"][:2] == ["4", "1"]


def test_tables_of_forks_and_selectors() -> None:
    records = two_arms()
    diverse = replace(SCOUT, selector="diversity")
    records[diverse] = record(diverse, (2, 6.0, [1.0, 1.0, 0.5, 0.5]))
    (row,) = tables.forks_table(read_forks(records, "win"), "win").rows
    assert row[:4] == ["lists", "base", "rpo", "1"] and row[5:8] == ["+0.000", "+0.375", "+0.375"]
    assert row[8:] == ["1 of 1", "1 of 1", "0.50", "1.3"]
    (row,) = tables.selectors_table(records, "win").rows
    assert row == ["lists", "base", "1", "+0.000", "+0.250", "+0.250"]


def two_runs() -> dict[Arm, dict[str, Any]]:
    """Off-policy pairs alone, and a run that follows the score, of two measurements and one round."""
    records = two_arms()
    off, follow = (Arm("lists", 0, (), name, 4, evaluate_every=2) for name in ("off", "follow"))
    records[off] = record(off, (2, 5.0, [0.0, 0.5, 0.5, 0.5]), (4, 10.0, [1.0, 1.0, 0.5, 0.5]))
    rounds = [{"candidates": 8, "reused": 4, "sample_seconds": 2.0, "judge_seconds": 0.5}]
    steps = [decision(0.4, 2.0), decision(0.6, 2.0, step=2, on_policy_share=1.0)]
    records[follow] = record(
        follow, (2, 8.0, [1.0, 1.0, 0.5, 0.5]), (4, 16.0, [1.0, 1.0, 1.0, 1.0]), rounds=rounds, decisions=steps
    )
    return records


def test_table_of_runs_at_equal_pairs_and_equal_seconds() -> None:
    records = two_runs()
    first, second = run_tables.runs_table(runs.read_runs(records), "win", "").rows
    assert first[1:5] == ["off", "1", "+0.250", "+0.250"]
    # On-policy: 0.25 after 8 s, 0.5 after 16 s, so 0.3125 after 10 s.
    assert second[1:] == ["follow", "1", "+0.500", "+0.312", "0:0 2:1"]
    del records[SCOUT]
    assert runs.read_runs(records) == []


def test_table_of_differences_is_paired_by_seed() -> None:
    finished = runs.read_runs(two_runs())
    more = [replace(run, seed=1) for run in finished]
    alone = replace(finished[0], seed=2)  # no partner: left out
    (row,) = run_tables.paired_table([*finished, *more, alone], "win", "").rows
    # Off ended first, after 10 s: 0.25 against 0.3125 by then.
    assert row == ["lists", "off", "2", "-0.250 [-0.250, -0.250]", "-0.062 [-0.062, -0.062]", "-0.250 -0.250"]


def test_table_of_costs() -> None:
    first, second = run_tables.effort_table(runs.read_runs(two_runs()), "").rows
    assert first[1:] == ["off", "1", "0", "0", "0", "0", "10", "10", "0", "0", "0.0", "0.000"]
    # Judged: 4 answers of the round, and 2 sampled and 3 static ones to each of 2 prompts, twice.
    tokens = str(12 * SETUP.max_new_tokens)
    assert second[1:] == ["follow", "1", "4", "8", tokens, "24", "16", "16", "2", "4", "2.0", "0.333"]


def test_longer_runs_have_tables_of_their_own_and_other_losses_rows_of_their_own() -> None:
    records = two_runs()
    long = Arm("lists", 0, (), "off", 160, evaluate_every=20, variant="160")
    records[long] = record(long, (160, 50.0, [1.0, 1.0, 1.0, 1.0]))
    weighted = Arm("lists", 0, (), "off", 4, loss="wpo", evaluate_every=2)
    records[weighted] = record(weighted, (2, 6.0, [1.0, 1.0, 1.0, 1.0]), (4, 12.0, [1.0, 1.0, 1.0, 1.0]))
    written = {
        table.title: [row[1:4] for row in table.rows] for table in run_tables.run_tables(runs.read_runs(records))
    }
    short, longer = written["Table 3. Whole runs (win)"], written["Table 5. Runs of 160 steps (win)"]
    assert [row[0] for row in short] == ["off", "off, wpo", "follow"] and longer == [["off", "1", "+0.500"]]
    assert tables.variants_table(records, "win").rows == []


def test_figures_are_kept_and_added_to(tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text("[]")
    (tmp_path / "forks.json").write_text("[]")
    kept.keep(two_runs(), tmp_path)
    first = kept.kept_runs(tmp_path)
    assert first == runs.read_runs(two_runs())
    ((name, (point,)), *_) = kept.kept_points(tmp_path).items()
    assert (name, point.score, point.difference) == ("votes, win", 0.5625, 0.375)
    assert kept.kept_points(tmp_path)["graded margins, win"][0].score == pytest.approx(0.625, abs=1e-4)
    later = {replace(arm, seed=1): {**row, "code": "new"} for arm, row in two_runs().items()}
    kept.keep(later, tmp_path)
    assert [run.code for run in kept.kept_runs(tmp_path)] == ["c0de", "new"] * 2
    kept.write_kept(tmp_path / "kept.md", tmp_path)
    text = (tmp_path / "kept.md").read_text(encoding="utf-8")
    assert "| votes, win | 2 |" in text and "| lists | follow | 2 |" in text
    assert {path.name for path in tmp_path.glob("*.svg")} >= {"crossing-win.svg", "kept-runs-lists-score.svg"}


def test_where_a_line_and_a_monotone_fit_cross_zero() -> None:
    def point(score: float, difference: float, seed: int = 0) -> crossing.Point:
        return crossing.Point(("lists", seed), score, difference, True)

    rising = [point(0.2, -0.2), point(0.4, 0.0, 1), point(0.6, 0.2, 2), point(0.3, -0.1, 3)]
    assert crossing.line_crossing(rising) == pytest.approx(0.4)
    assert math.isnan(crossing.line_crossing([point(0.2, 0.1), point(0.6, -0.1)]))
    # 0.3 and -0.1 are pooled with 0.1 between them: (0.3 + 0.1 - 0.1) / 3.
    bumpy = [point(0.2, -0.4), point(0.3, 0.3), point(0.4, 0.1), point(0.5, -0.1), point(0.6, 0.5)]
    assert [value for _, value in crossing.isotonic(bumpy)] == pytest.approx([-0.4, 0.1, 0.1, 0.1, 0.5])
    assert crossing.isotonic_crossing(bumpy) == pytest.approx(0.25)
    assert crossing.isotonic([point(0.2, 1.0), point(0.2, 0.0)]) == [(0.2, 0.5), (0.2, 0.5)]
    (row,) = crossing.crossing_table({"votes": rising}).rows
    assert row[:2] == ["votes", "4"] and row[2].startswith("0.400 [") and row[4].startswith("-0.200 [")
    lines = crossing.band(rising, [0.2, 0.6])
    assert [estimate.value for estimate in lines] == pytest.approx([-0.2, 0.2])


def test_decided_measurements_count_by_themselves() -> None:
    def point(score: float, difference: float, decided: bool) -> crossing.Point:
        return crossing.Point(("lists", 0), score, difference, decided)

    points = [point(0.2, -0.1, True), point(0.7, 0.1, True), point(0.3, 0.1, True), point(0.49, 0.1, False)]
    rows = crossing.decided_table({"votes": points}).rows
    assert [(row[2], row[3], row[5], row[6]) for row in rows] == [
        ("4", "2", "3", "1"), ("3", "2", "2", "1"), ("1", "0", "1", "0")
    ]  # fmt: skip


def test_table_of_variants() -> None:
    records = two_arms()
    varied = replace(ON, variant="8-answers")
    records[varied] = record(varied, (2, 30.0, [1.0, 0.5, 0.5, 0.0]), rounds=[{"candidates": 24}])
    (row,) = tables.variants_table(records, "win").rows
    assert row == ["lists", "8-answers", "1", "+0.375", "+0.000", "-0.375", "4.0", "30 (12)"]
    assert len(read_forks(records, "win")) == 1, "a variant is no fork of Table 1"


def test_a_measurement_replayed_sequentially() -> None:
    (fork,) = forks_with([1.0], [True])
    clear = replace(fork.start, on=[[1.0]] * 48, off=[[0.0]] * 48)
    assert tables.replay(clear) == (16, True, True)
    open_ = replace(fork.start, on=[[1.0], [0.0]] * 20, off=[[0.5]] * 40)
    assert tables.replay(open_) == (40, False, True)


def test_plots_are_pictures_with_their_points(tmp_path: Path) -> None:
    forks = forks_with([0.0, 1.0], [False, True])
    picture = ElementTree.fromstring(plots.forks_plot(forks, "win"))
    markers = [e for e in picture.iter(f"{SVG}use") if f"fill: {plots.COLOURS[0]}" in e.get("style", "")]
    points = sorted((float(e.get("x", "nan")), float(e.get("y", "nan"))) for e in markers)[:2]
    background = picture.find(f".//{SVG}g[@id='patch_2']/{SVG}path")
    assert background is not None
    corners = re.findall(r"[ML] ([\d.]+) ([\d.]+)", background.get("d", ""))
    left_edge, right_edge = (extreme(float(x) for x, _ in corners) for extreme in (min, max))
    assert [x for x, _ in points] == [left_edge, right_edge]  # at scores 0 and 1
    assert points[0][1] > points[1][1], "off-policy pairs brought more at 0, on-policy pairs at 1"
    labels = {e.text for e in picture.iter(f"{SVG}text")}
    assert {"lists", "boundary score before", "0.2", "1.0"} <= labels
    assert plots.forks_plot(forks, "win") == plots.forks_plot(forks, "win")
    assert ElementTree.fromstring(plots.predictors_plot({"win": forks, "score": forks})) is not None


def test_a_plot_of_runs_is_their_mean() -> None:
    one, other = (replace(run, seconds=[4.0 + run.seed], win=[1.0 - run.seed]) for run in numbered_runs())
    assert runs.mean_curve([one, other], "win") == [(0.0, 0.0), (4.5, 0.5)]
    picture = ElementTree.fromstring(plots.runs_plot([one, other], "win", "Whole runs"))
    assert {"off, seeds: 2", "gain"} <= {e.text for e in picture.iter(f"{SVG}text")}


def numbered_runs() -> list[runs.Run]:
    off = runs.read_runs(two_runs())[0]
    return [replace(off, seed=seed) for seed in (0, 1)]


def test_a_report_from_json_alone(tmp_path: Path) -> None:
    records = Records(tmp_path, SETUP)
    arms = plan.arms_of(plan.TABLES, SETUP, [0])
    assert "No arm is finished" in write_report(records, arms, "cmd").read_text(encoding="utf-8")
    for arm, arm_record in two_arms().items():
        records.write(arm, json.loads(json.dumps(arm_record)))
    text = write_report(records, arms, "cmd").read_text(encoding="utf-8")
    assert f"2 of {len(arms)} arms" in text and "c0de (2 arms)" in text and "| lists | base | rpo | 1 | 0.562" in text
    assert (tmp_path / "forks-win.svg").read_text(encoding="utf-8").startswith("<?xml")
