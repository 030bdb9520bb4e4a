"""The watch rings where it should, once, and not in a run that is well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.batch import PairBatch
from lit_align.boundary import BoundaryCallback
from lit_align.boundary.result import Decision
from lit_align.html_report.page import render
from lit_align.html_report.record import RunRecord
from lit_align.losses import DPO
from lit_align.policy import PolicySpec
from lit_align.report.summary import RunSummary
from lit_align.report.text import render as summary_text
from lit_align.report.win_rate import WinRateAtStep, WinRateCallback
from lit_align.training.module import AlignmentModule
from lit_align.watch import RunWatch
from lit_align.watch.answers import (
    Compared,
    find_collapse,
    find_few_texts,
    find_growth,
    find_over_optimisation,
    find_wins_by_length,
)
from lit_align.watch.training import WINDOW, find_displacement, find_drift, find_saturation
from tests.helpers.modules import loader, loader_of, lora_module, padded, trainer
from tests.helpers.run_folders import decision, summary_of

RECORDED = Path(__file__).parent / "helpers" / "recorded_quickstart.json"
MODULE: Any = None


def fake_trainer(*callbacks: Any, limit: int = 24) -> Any:
    return SimpleNamespace(
        callbacks=list(callbacks), datamodule=SimpleNamespace(sampler=SimpleNamespace(max_new_tokens=limit)),
        global_step=0, callback_metrics={}, sanity_checking=False, state=SimpleNamespace(fn="fit"),
    )  # fmt: skip


def replay(
    watch: RunWatch,
    metrics: Sequence[dict[str, float]],
    decisions: Sequence[Decision] = (),
    win_rate: WinRateCallback | None = None,
) -> list[str]:
    """Lets the watch see a run that was recorded; returns the names of its alarms."""
    boundary = BoundaryCallback()
    run = fake_trainer(boundary, *([win_rate] if win_rate else []))
    watch.setup(run, MODULE, "fit")
    boundary.history = [made for made in decisions if made.step == 0]
    watch.on_train_start(run, MODULE)
    for step, values in enumerate(metrics, 1):
        run.global_step = step
        run.callback_metrics = {name: torch.tensor(value) for name, value in values.items()}
        boundary.history += [made for made in decisions if made.step == step]
        watch.on_train_batch_end(run, MODULE)
    watch.on_train_end(run, MODULE)
    return [alarm.name for alarm in watch.alarms]


def steps(count: int, **last: float) -> list[dict[str, float]]:
    """Metrics that go in a straight line from a usual start to `last`."""
    start = {"logps/chosen": -100.0, "logps/rejected": -110.0, "rewards/accuracies": 0.6, "rewards/margins": 0.1}
    begin = {**start, "kl": 0.0}
    end = {**start, "kl": 1.0, **last}
    return [{name: begin[name] + (end[name] - begin[name]) * n / count for name in begin} for n in range(count)]


def sided(step: int, score: float, **figures: float) -> Decision:
    return decision(step, score, characteristics={"on_policy": figures})


def won(step: int, score: float, own_judge: bool = False, **more: Any) -> WinRateAtStep:
    settings: dict[str, Any] = {
        "prompts": 64, "ties": 0, "mean_before": 0.0, "mean_after": 1.0, "length_controlled": score,
        "length_controlled_low": score - 0.1, "length_controlled_high": score + 0.1, "mean_length_before": 100.0,
        "mean_length_after": 100.0, "judge": "the other judge", "own_judge": own_judge, "seconds": 1.0, **more,
    }  # fmt: skip
    return WinRateAtStep(step, score, score - 0.1, score + 0.1, **settings)


def test_displacement_is_both_log_probs_falling_far() -> None:
    fell = find_displacement([-101.0] * 20, [-354.0] * 20, [-110.0] * 20, [-420.0] * 20)
    assert fell is not None and "from -101 to -354 nats" in fell.text and "RPO" in fell.advice
    assert find_displacement([-101.0] * 20, [-140.0] * 20, [-110.0] * 20, [-420.0] * 20) is None, "as DPO usually does"
    assert find_displacement([-101.0] * 20, [-354.0] * 20, [-110.0] * 20, [-90.0] * 20) is None, "not with the rejected"
    assert find_displacement([-10.0] * 20, [-28.0] * 20, [-10.0] * 20, [-40.0] * 20) is None, "short answers"
    wild = [-50.0, -450.0] * 10
    assert find_displacement(wild, [value - 150 for value in wild], [-110.0] * 20, [-420.0] * 20) is None, "by chance"
    assert find_displacement([-101.0], [-354.0], [-110.0], [-420.0]) is not None, "the same held-out pairs"


def test_saturation_and_drift() -> None:
    assert find_saturation([1.0] * 20, [12.0] * 20) is not None
    assert find_saturation([1.0] * 20, [7.5] * 20) is None and find_saturation([0.9] * 20, [30.0] * 20) is None
    far = find_drift([101.0] * 20, 100.0)
    assert far is not None and "101 nats" in far.text and find_drift([99.0] * 20, 100.0) is None


def test_collapse_within_and_over_prompts() -> None:
    assert find_collapse(0.0, 0.6, 32) is not None
    assert find_collapse(0.0, 0.4, 32) is None and find_collapse(0.4, 0.6, 32) is None
    assert find_collapse(0.0, 1.0, 15) is None, "too few prompts"
    varied = [f"answer {n}" for n in range(32)]
    few = find_few_texts(varied, ["I am sure.", "I see."] * 16)
    assert few is not None and "only 2 different texts, 32 at the start" in few.text
    assert find_few_texts(varied, varied) is None
    assert find_few_texts(["yes", "no"] * 16, ["no", "yes"] * 16) is None, "a task of two answers"


def test_growth_counts_only_without_a_win() -> None:
    grown = find_growth(100, 250, 256, 0.4, 0.42)
    assert grown is not None and "from 100 to 250 tokens" in grown.text
    assert find_growth(100, 250, 256, 0.4, 0.7) is None, "it wins by it"
    assert find_growth(240, 250, 256, 0.4, 0.4) is None, "as long from the start"
    assert find_growth(100, 200, 256, 0.4, 0.4) is None


def test_over_optimisation_takes_two_judges_that_part() -> None:
    rising = [(0, 0.2), (50, 0.6), (100, 0.9)]
    parted = find_over_optimisation(rising, [Compared(50, 0.8, 0.7, 0.9), Compared(100, 0.4, 0.3, 0.5)], "B")
    assert parted is not None and "80 % at step 50" in parted.text and "by B answers win 40 %" in parted.text
    worse = find_over_optimisation(rising, [Compared(100, 0.3, 0.2, 0.4)])
    assert worse is not None and "50 % at step 0" in worse.text, "worse than the start"
    near = [Compared(50, 0.8, 0.7, 0.9), Compared(100, 0.7, 0.6, 0.8)]
    assert find_over_optimisation(rising, near) is None, "within the intervals"
    assert find_over_optimisation([(0, 0.9), (100, 0.2)], [Compared(100, 0.3, 0.2, 0.4)]) is None, "both fall"
    assert find_over_optimisation(rising, []) is None and find_over_optimisation([], near) is None


def test_a_win_by_length_is_none_at_equal_lengths() -> None:
    by_length = find_wins_by_length(0.6, 0.45, 100, 180)
    assert by_length is not None and "longer (100 to 180 characters)" in by_length.text
    assert find_wins_by_length(0.6, 0.6, 100, 180) is None and find_wins_by_length(0.6, 0.45, 100, 110) is None
    assert find_wins_by_length(0.4, 0.3, 100, 180) is None, "it has not won"


@pytest.mark.parametrize(
    ("name", "metrics", "decisions", "results"),
    [
        ("displacement", steps(60, **{"logps/chosen": -354.0, "logps/rejected": -420.0}), [], []),
        ("saturation", steps(60, **{"rewards/accuracies": 1.0, "rewards/margins": 30.0}), [], []),
        ("kl", steps(60, kl=400.0), [], []),
        ("collapse", steps(20), [sided(0, 0.2, duplicates=0.0), sided(20, 0.3, duplicates=0.9)], []),
        ("length", steps(20), [sided(0, 0.2, length_tokens=8.0), sided(20, 0.2, length_tokens=23.9)], []),
        ("over_optimisation", steps(20), [sided(0, 0.2, score_mean=0.2), sided(20, 0.3, score_mean=2.0)],
         [won(10, 0.8), won(20, 0.3)]),
        ("judge_by_length", steps(20), [],
         [won(20, 0.9, own_judge=True, length_controlled=0.4, mean_length_after=200.0)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_alarm_rings_once_and_not_after_a_resume(
    name: str, metrics: Any, decisions: Any, results: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    win_rate = WinRateCallback()
    win_rate.results = results
    watch = RunWatch()
    if name in ("saturation", "displacement", "kl"):
        metrics = metrics + [metrics[-1]] * 40
    assert set(replay(watch, metrics, decisions, win_rate)) == {name}
    printed = capsys.readouterr().out
    assert printed.count("watch: step") == 1 and watch.alarms[0].text in printed and watch.alarms[0].advice in printed

    resumed = RunWatch()
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))  # plain types only
    boundary = BoundaryCallback()
    boundary.history = list(decisions)
    run = fake_trainer(boundary, win_rate)
    run.global_step = len(metrics)
    resumed.on_train_start(run, MODULE)
    resumed.on_train_end(run, MODULE)
    assert resumed.alarms == watch.alarms and capsys.readouterr().out == ""
    assert replay(RunWatch(enabled=False), metrics, decisions, win_rate) == []


def test_the_quickstart_as_recorded_rings_nothing() -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    metrics = [dict(zip(recorded["metrics"], values, strict=True)) for values in recorded["steps"]]
    assert len(metrics) >= 40 and len(recorded["decisions"]) == 5
    win_rate = WinRateCallback()
    win_rate.answers = recorded["answers"]
    win_rate.results = [won(40, 0.98, own_judge=True)]
    assert replay(RunWatch(), metrics, list(map(Decision.from_record, recorded["decisions"])), win_rate) == []


def test_log_probs_of_another_source_are_not_compared() -> None:
    falls = {"logps/chosen": -300.0, "logps/rejected": -320.0}
    metrics = steps(40)[:1] * 30 + [{**steps(1)[0], **falls}] * 60
    switch = [decision(0, 0.2), decision(30, 0.9)]
    assert replay(RunWatch(), metrics, switch) == [] and replay(RunWatch(), metrics) == ["displacement"]


def test_held_out_pairs_are_compared_with_the_first_validation() -> None:
    watch = RunWatch()
    run = fake_trainer()
    for chosen, rejected in ((-100.0, -100.0), (-130.0, -180.0), (-260.0, -400.0)):
        run.callback_metrics = {"val/logps/chosen": chosen, "val/logps/rejected": rejected}
        watch.on_validation_end(run, MODULE)
        assert bool(watch.alarms) == (chosen == -260.0)
    assert "from -100 to -260 nats" in watch.alarms[0].text


def nearly_alike() -> PairBatch:
    """Pairs of 24 tokens that differ in the last two."""
    generator = torch.Generator().manual_seed(0)
    prompts, chosen, other = torch.randint(3, 320, (3, 2, 24), generator=generator).tolist()
    rejected = [one[:22] + two[22:] for one, two in zip(chosen, other, strict=True)]
    return PairBatch(
        padded(*prompts), padded(*chosen), padded(*rejected), torch.zeros(2).bool(), torch.full((2,), torch.nan)
    )


def test_a_fit_that_runs_away_is_said_in_log_summary_and_report(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = RunWatch()
    fit = trainer(tmp_path, watch, RunSummary(show=False), max_steps=60)
    spec = PolicySpec(str(tiny_model))
    module = AlignmentModule(spec, DPO(), optimizer=lambda params: torch.optim.AdamW(params, lr=3e-2))
    fit.fit(module, loader_of([nearly_alike()]))
    assert "displacement" in {alarm.name for alarm in watch.alarms}
    said = "the policy moves away from both (likelihood displacement)"
    assert capsys.readouterr().out.count(said) == 1
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["alarms"] == [asdict(alarm) for alarm in watch.alarms]
    assert said in " ".join(summary_text(written).split())
    page = render([RunRecord("run", "finished", summary=summary_of([], 60, alarms=written["alarms"]))])
    assert page.count(said) == 1


def test_an_ordinary_fit_is_silent_and_its_checkpoint_has_the_watch(tiny_model: Path, tmp_path: Path) -> None:
    watch = RunWatch()
    keeper = ModelCheckpoint(tmp_path, save_last=True)
    fit = trainer(tmp_path, watch, keeper, max_steps=2 * WINDOW + 5)
    fit.fit(lora_module(tiny_model, optimizer=lambda params: torch.optim.AdamW(params, lr=1e-4)), loader(4))
    assert watch.alarms == []
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["RunWatch"]
    assert state["series"]["logps/chosen"]["count"] >= 2 * WINDOW


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="max_kl above 0"):
        RunWatch(max_kl=0)
    assert replay(RunWatch(max_kl=None), steps(60, kl=400.0)) == []
