"""The schedule that learns from the gains: its arithmetic by hand, its choices on simulated gains, its resume."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
import pytest

from callbacks import GainSchedule
from lit_align.boundary import BoundaryResult, Decision
from lit_align.boundary.gains import Stretch, believe, score_says, stretches, with_lead
from lit_align.boundary.switch import as_decision
from lit_align.boundary.votes import JudgedPrompt
from lit_align.records import Candidate, CandidateSet, Message
from lit_align.trainer import AlignmentTrainer
from tests.helpers.boundary_fakes import FakeData, FakeModule

WAVE = [0.1, 0.4, 0.6, 0.7, 0.75, 0.8, 0.8, 0.85, 0.9]


def result(lead: float, error: float = 0.01, score: float = 0.3, seconds: float = 0.0) -> BoundaryResult:
    figures = {"on_policy": {"lead": lead, "lead_error": error}}
    return BoundaryResult(score, score - 0.1, score + 0.1, 64, 3, 3, 0, seconds=seconds, characteristics=figures)


def decision(step: int, share: float, lead: float, share_of_training: float | None = None) -> Decision:
    measured = result(lead, seconds=2.0)
    return Decision(step, "injection", share, "", measured, share_of_training)


def prompt(on: list[float | None], off: list[float | None]) -> JudgedPrompt:
    asked = (Message("user", "?"),)
    on_set, off_set = (CandidateSet(asked, tuple(Candidate("", score) for score in side)) for side in (on, off))
    return JudgedPrompt(on_set, off_set, np.zeros((1, 1)), np.zeros((1, 1)))


def test_the_lead_by_hand() -> None:
    judged = [prompt([1.0, 3.0], [0.0]), prompt([2.0, None], [1.0, 2.0]), prompt([None], [1.0])]
    bare = BoundaryResult(0.5, 0.4, 0.6, 3, 1, 1, 0, characteristics={"on_policy": {"x": 1.0}})
    figures = with_lead(bare, judged).characteristics["on_policy"]
    # Leads 2 and 0.5: mean 1.25, standard deviation 1.5 / sqrt(2), error 0.75.
    assert figures == pytest.approx({"x": 1.0, "lead": 1.25, "lead_error": 0.75})
    assert with_lead(bare, judged[:1]) == bare


def test_stretches_lie_between_measurements_and_count_steps_or_seconds_of_training() -> None:
    history = [decision(0, 0.0, 1.0), Decision(5, "injection", 0.0, "by hand"), decision(10, 1.0, 1.5, 0.2)]
    error = math.hypot(0.01, 0.01)
    by_steps = stretches(history, 30, result(2.5))
    assert by_steps == [Stretch(0.0, 0.5, error, 10), Stretch(1.0, 1.0, error, 20)]
    # 4 s of measuring were a fifth of the training at step 10.
    by_seconds = stretches(history, 30, result(2.5), seconds=50.0)
    assert [stretch.cost for stretch in by_seconds] == [20.0, 30.0]
    assert stretches(history, 10, result(2.5)) == by_steps[:1], "nothing was trained since"
    assert stretches([], 0, result(0.0)) == []


def test_one_stretch_by_hand() -> None:
    """On-policy alone: its gain is a normal mean with a normal prior; off-policy pairs keep theirs."""
    belief = believe([Stretch(1.0, 0.6, 0.3, 3.0)], prior=0.5, memory=2.0)
    assert belief is not None
    scale = math.sqrt(0.2**2 + 0.1**2)
    assert (belief.off, belief.off_error) == pytest.approx((0.2, scale))
    assert (belief.on, belief.on_error) == pytest.approx((0.2, 1 / math.sqrt(1 / scale**2 + 1 / 0.1**2)))
    assert belief.on_better == pytest.approx(0.5)


def test_without_gains_the_score_alone_tells() -> None:
    assert believe([], 0.8, 2.0) is None and believe([Stretch(0.0, 0.0, 0.0, 1.0)], 0.8, 2.0) is None
    assert score_says(result(0.0, score=0.5), 0.8) == pytest.approx(0.5)
    assert score_says(result(0.0, score=0.1), 0.8) == pytest.approx(0.2, abs=1e-6)
    assert score_says(result(0.0, score=0.55), 0.8) == pytest.approx(0.2 + 0.6 * NormalDist().cdf(1.0))
    nothing_learned = believe([Stretch(0.5, 0.1, 100.0, 1.0)], 0.8, 2.0)
    assert nothing_learned is not None and nothing_learned.on_better == pytest.approx(0.8, abs=0.01)


def test_the_scale_of_the_judge_does_not_matter() -> None:
    rows = [Stretch(0.1, 0.3, 0.1, 10), Stretch(0.9, 0.5, 0.1, 10), Stretch(0.2, 0.1, 0.2, 20)]
    plain = believe(rows, 0.3, 2.0)
    scaled = believe([row._replace(gain=1000 * row.gain, error=1000 * row.error) for row in rows], 0.3, 2.0)
    assert plain is not None and scaled is not None
    assert scaled.on_better == pytest.approx(plain.on_better) and scaled.on == pytest.approx(1000 * plain.on)


def test_old_gains_count_less() -> None:
    then, now = Stretch(1.0, 1.0, 0.1, 1.0), Stretch(1.0, 0.0, 0.1, 1.0)
    short, long = (believe([then, now], 0.5, memory) for memory in (1.0, 1e9))
    assert short is not None and long is not None
    assert long.on == pytest.approx(0.5) and short.on == pytest.approx(1 / 3, abs=1e-6)


def simulate(
    gain: Callable[[int, float], float], measurements: int, seed: int, score: float, noise: float = 0.05
) -> list[float]:
    """The shares that the schedule chooses; `gain(number, share)` is what a stretch brings."""
    schedule = GainSchedule(every_n_steps=10, seed=seed)
    rng = random.Random(seed)
    history: list[Decision] = []
    lead = 0.0
    for number in range(measurements):
        measured = result(lead + rng.gauss(0, noise), noise, score)
        choice = schedule.decide(10 * number, measured, history)
        assert choice is not None
        history.append(as_decision(10 * number, measured, choice))
        lead += gain(number, choice.share)
    return [entry.on_policy_share for entry in history]


def steady(on: float, off: float) -> Callable[[int, float], float]:
    return lambda number, share: share * on + (1 - share) * off


@pytest.mark.parametrize(("on", "off", "score"), [(0.3, 0.05, 0.2), (0.05, 0.3, 0.8), (0.3, 0.05, 0.8)])
def test_it_finds_the_better_source_whatever_the_score_says(on: float, off: float, score: float) -> None:
    shares = [simulate(steady(on, off), 30, seed, score) for seed in range(20)]
    begins = {row[0] > 0.5 for row in shares}
    assert begins == {score > 0.5}, "it begins as the score says"
    late = fmean(fmean(row[10:]) for row in shares)
    assert late > 0.75 if on > off else late < 0.25


def test_it_changes_when_the_better_source_changes() -> None:
    def turning(number: int, share: float) -> float:
        return steady(0.05, 0.3)(number, share) if number < 20 else steady(0.3, 0.05)(number, share)

    shares = [simulate(turning, 40, seed, score=0.5) for seed in range(20)]
    assert fmean(fmean(row[8:20]) for row in shares) < 0.3
    assert fmean(fmean(row[28:]) for row in shares) > 0.7


def test_unsure_it_takes_some_pairs_from_either_source_and_says_why() -> None:
    schedule = GainSchedule(every_n_steps=10)
    first = schedule.decide(0, result(0.0), [])
    assert first is not None
    assert 0.05 < first.share < 0.15 and first.reason == "no gains known yet: off-policy pairs, as the score says"
    history = [as_decision(0, result(0.0), first)]
    second = schedule.decide(10, result(0.2, score=0.6), history)
    assert second is not None and second == schedule.decide(10, result(0.2, score=0.6), history)
    assert second.reason.startswith("gain a step: ") and " better with " in second.reason
    certain = [replace(history[0], on_policy_share=share, step=step) for step, share in ((0, 0.0), (10, 1.0))]
    certain[1] = replace(certain[1], result=result(0.1, 1e-6))
    choice = schedule.decide(20, result(9.0, 1e-6), certain)
    assert choice is not None and choice.share > 0.9


def test_ties_change_nothing() -> None:
    silent = BoundaryResult(0.5, 0.0, 1.0, 64, 0, 0, 256)
    choice = GainSchedule().decide(10, silent, [decision(0, 0.9, 0.0)])
    assert choice is not None and choice.share == 0.9 and "told no answers apart" in choice.reason


def test_without_scores_it_follows_the_score() -> None:
    unscored = replace(result(0.0, score=0.7), characteristics={})
    choice = GainSchedule().decide(10, unscored, [replace(decision(0, 0.1, 0.0), result=unscored)])
    assert choice is not None and choice.share > 0.8 and "as the score says" in choice.reason


@pytest.mark.parametrize("wrong", [{"per": "epoch"}, {"trust": 1.0}, {"memory": 0}])
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        GainSchedule(**wrong)


def test_a_resumed_run_decides_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    def fit(folder: Path, steps: int, ckpt_path: Path | None = None) -> list[Decision]:
        schedule = GainSchedule(every_n_steps=2, sequential=False)
        trainer = AlignmentTrainer(
            accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder), callbacks=[schedule],
        )  # fmt: skip
        trainer.fit(FakeModule(), datamodule=FakeData(WAVE), ckpt_path=ckpt_path)
        trainer.save_checkpoint(folder / "end.ckpt")
        return schedule.history

    whole = fit(tmp_path / "whole", 8)
    fit(tmp_path / "part", 4)
    resumed = fit(tmp_path / "part", 8, tmp_path / "part" / "end.ckpt")
    choices = [[(d.step, d.on_policy_share, d.reason) for d in history] for history in (whole, resumed)]
    assert choices[0] == choices[1] and len(choices[0]) == 5
    assert any("gain a step" in reason for *_, reason in choices[0])
