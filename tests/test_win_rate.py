"""The win rate against the start: numbers derived by hand, the true start after a resume."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_align.judges import RuleJudge
from lit_align.records import Candidate, CandidateSet, Message, Prompt, prompt_text
from lit_align.report.win_rate import WinRateCallback


def length(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [float(len(text)) for text in candidates]


class Data:
    """Answers are as long as the policy's `skill` says, by prompt."""

    def __init__(self, prompts: int) -> None:
        self.evaluated_on = [CandidateSet((Message("user", f"p{n}"),), (Candidate("static"),)) for n in range(prompts)]
        self.judge, self.seed = RuleJudge(length), 0
        self.skill: dict[str, int] = {f"p{n}": 2 for n in range(prompts)}
        self.asked = 0
        self.held_out_prompts = self

    def group_of(self, prompt: Prompt) -> str:
        return prompt_text(prompt)

    def sample(self, sets: list[CandidateSet], *purpose: Any, num_candidates: int, desc: str) -> list[CandidateSet]:
        assert num_candidates == 1
        self.asked += len(sets)
        name = lambda one: one.prompt[0].content  # noqa: E731
        return [CandidateSet(one.prompt, (Candidate("x" * self.skill[name(one)]),), one.row) for one in sets]


class Log:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.values = {**values, "step": step}


def fake_trainer(data: Data, folder: Path, step: int = 0) -> Any:
    return SimpleNamespace(
        datamodule=data,
        global_step=step,
        is_global_zero=True,
        loggers=[Log()],
        default_root_dir=str(folder),
        fast_dev_run=False,
    )


MODULE: Any = SimpleNamespace(device=None)


def test_wins_ties_losses_and_means(tmp_path: Path) -> None:
    data = Data(4)
    trainer = fake_trainer(data, tmp_path)
    callback = WinRateCallback(num_prompts=10)
    callback.on_train_start(trainer, MODULE)
    data.skill = {"p0": 5, "p1": 2, "p2": 1, "p3": 3}  # win, tie, loss, win
    trainer.global_step = 7
    callback.on_train_end(trainer, MODULE)
    result = callback.result
    assert result is not None
    assert (result.score, result.prompts, result.ties) == (2.5 / 4, 4, 1)
    assert (result.mean_before, result.mean_after) == (2.0, 11 / 4)
    assert result.low < result.score < result.high
    assert trainer.loggers[0].values["win_rate/score"] == 2.5 / 4
    assert trainer.loggers[0].values["step"] == 7
    rows = {row["prompt"]: row for row in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())}
    assert rows["p0"] == {"prompt": "p0", "before": "xx", "after": "xxxxx", "score_before": 2.0, "score_after": 5.0}


def test_a_resumed_run_compares_with_the_true_start(tmp_path: Path) -> None:
    data = Data(5)
    first = WinRateCallback(num_prompts=3)
    first.on_train_start(fake_trainer(data, tmp_path), MODULE)
    assert data.asked == 3
    data.skill = dict.fromkeys(data.skill, 9)
    second = WinRateCallback(num_prompts=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))  # plain types only
    trainer = fake_trainer(data, tmp_path, step=4)
    second.on_train_start(trainer, MODULE)
    assert data.asked == 3, "the start is not sampled again"
    second.on_train_end(trainer, MODULE)
    assert second.result is not None and (second.result.score, second.result.mean_before) == (1.0, 2.0)


def test_other_data_after_a_resume_are_refused(tmp_path: Path) -> None:
    first = WinRateCallback(num_prompts=3)
    first.on_train_start(fake_trainer(Data(3), tmp_path), MODULE)
    second, other = WinRateCallback(num_prompts=3), Data(3)
    second.load_state_dict(first.state_dict())
    other.seed = 1
    with pytest.raises(ValueError, match="go on with the data and the seed"):
        second.on_train_end(fake_trainer(other, tmp_path, step=4), MODULE)


def test_without_held_out_prompts_it_says_so_and_does_nothing(tmp_path: Path) -> None:
    callback = WinRateCallback()
    with pytest.warns(UserWarning, match="no held-out prompts"):
        callback.on_train_start(fake_trainer(Data(0), tmp_path), MODULE)
    callback.on_train_end(fake_trainer(Data(0), tmp_path), MODULE)
    assert callback.result is None


def test_a_checkpoint_without_the_start_gives_no_win_rate(tmp_path: Path) -> None:
    callback = WinRateCallback()
    with pytest.warns(UserWarning, match="without the start's answers"):
        callback.on_train_start(fake_trainer(Data(2), tmp_path, step=3), MODULE)
    assert callback.state_dict()["before"] == []


def train(data: Data, callback: WinRateCallback, folder: Path, steps: range) -> Any:
    """Two micro-batches a step; at step n every answer is n + 1 long."""
    trainer = fake_trainer(data, folder, step=max(steps.start - 1, 0))
    callback.on_train_start(trainer, MODULE)
    for step in steps:
        for micro_step in (step - 1, step):  # the optimizer steps at the second
            trainer.global_step = micro_step
            data.skill = dict.fromkeys(data.skill, micro_step + 1)
            callback.on_train_batch_end(trainer, MODULE, None, None, 0)
    callback.on_train_end(trainer, MODULE)
    return trainer


def test_every_n_steps_it_compares_the_same_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Data(5)
    callback = WinRateCallback(num_prompts=3, every_n_steps=2, judge=RuleJudge(length))
    trainer = train(data, callback, tmp_path, range(1, 6))
    assert [(result.step, result.mean_after) for result in callback.results] == [(2, 3.0), (4, 5.0), (5, 6.0)]
    assert data.asked == 3 * 4, "the start, two in between, the end"
    assert trainer.loggers[0].values["win_rate/length_controlled"] == 1.0
    assert callback.result is not None and not callback.result.own_judge
    assert "step 4: win rate against the start 100 %" in capsys.readouterr().out


def test_the_end_is_not_compared_twice(tmp_path: Path) -> None:
    data = Data(5)
    callback = WinRateCallback(num_prompts=3, every_n_steps=2)
    train(data, callback, tmp_path, range(1, 5))
    assert [result.step for result in callback.results] == [2, 4]
    assert data.asked == 3 * 3
    assert callback.result is not None and callback.result.own_judge


def test_a_resumed_run_goes_on_with_the_results_so_far(tmp_path: Path) -> None:
    whole = WinRateCallback(num_prompts=3, every_n_steps=2)
    train(Data(5), whole, tmp_path, range(1, 7))
    first, second = WinRateCallback(num_prompts=3, every_n_steps=2), WinRateCallback(num_prompts=3, every_n_steps=2)
    train(Data(5), first, tmp_path, range(1, 4))
    state = {**first.state_dict(), "results": first.state_dict()["results"][:1]}  # saved at step 3
    second.load_state_dict(json.loads(json.dumps(state)))
    train(Data(5), second, tmp_path, range(4, 7))
    assert [replace(result, seconds=0.0) for result in second.results] == [
        replace(result, seconds=0.0) for result in whole.results
    ]


def test_a_judge_that_abstains_from_all_does_not_end_the_run(tmp_path: Path) -> None:
    silent = RuleJudge(lambda prompt, candidates, row: [math.nan for _ in candidates])
    callback = WinRateCallback(num_prompts=3, every_n_steps=2, judge=silent)
    with pytest.warns(UserWarning, match="gave no verdict at step 2"):
        train(Data(5), callback, tmp_path, range(1, 4))
    assert callback.result is None


def test_without_a_judge_it_is_refused_before_training(tmp_path: Path) -> None:
    data: Any = SimpleNamespace(sampler=object(), judge=None)
    with pytest.raises(ValueError, match=r"set `data.judge`"):
        WinRateCallback().check_data(data, fake_trainer(Data(1), tmp_path))
    WinRateCallback(judge=RuleJudge(length)).check_data(data, fake_trainer(Data(1), tmp_path))
