"""Tasks of lm-evaluation-harness before and after a fit: on tiny local tasks, without the hub."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_align.cli import main
from lit_align.evaluate.tasks import TaskChange, TaskSettings, compare_results, run_tasks
from lit_align.policy import PolicySpec
from lit_align.policy.load import load_tokenizer
from lit_align.report.evaluation import readable_tasks
from lit_align.trained import open_run
from tests.helpers.data_fakes import write
from tests.helpers.tiny import save_adapter

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
PERPLEXITY = """doc_to_target: "{{choices[answer]}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
"""


def results(values: list[float], **more: Any) -> dict[str, Any]:
    """What the harness gives on one task with one metric."""
    mean = sum(values) / len(values)
    return {
        "results": {"t": {"alias": "t", "acc,none": mean, "acc_stderr,none": 0.3, **more}},
        "samples": {"t": [{"doc_id": n, "filter": "none", "acc": value} for n, value in enumerate(values)]},
        "higher_is_better": {"t": {"acc": True}},
        "n-samples": {"t": {"effective": len(values)}},
    }


def test_questions_are_compared_with_themselves() -> None:
    """Differences 0, 0, -1, -1: mean -0.5, deviation sqrt(1/3), error sqrt(1/12)."""
    (change,) = compare_results(results([1, 0, 1, 1]), results([1, 0, 0, 0]))
    assert (change.before, change.after, change.difference) == (0.75, 0.25, -0.5)
    assert change.paired and change.standard_error == pytest.approx(math.sqrt(1 / 12))
    assert (change.questions, change.higher_is_better, change.is_worse) == (4, True, False)


def test_what_is_no_mean_over_questions_takes_both_errors() -> None:
    after = results([1, 0, 0, 0])
    after["results"]["t"]["acc,none"] = 0.9  # not the mean of the samples
    (change,) = compare_results(results([1, 0, 1, 1]), after)
    assert not change.paired and change.standard_error == pytest.approx(math.hypot(0.3, 0.3))
    after["results"]["t"]["acc_stderr,none"] = "N/A"
    (change,) = compare_results(results([1, 0, 1, 1]), after)
    assert change.standard_error is None and not change.is_worse


def test_a_loss_of_more_than_two_errors_is_named() -> None:
    worse = TaskChange("arc\x1b[2J", "acc", 0.5, 0.4, -0.1, 0.04, True, 100, True)
    better = TaskChange("ppl", "perplexity", 9.0, 8.0, -1.0, 0.1, False, 100, False)
    assert (worse.is_worse, better.is_worse) == (True, False)
    shown = readable_tasks([worse, better])
    assert "two standard errors: arc\\x1b[2J (acc)." in shown and "\x1b" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_XET_HIGH_PERFORMANCE", "1")  # the harness sets it, too
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    rows = [{"question": f"Tea {n} is", "choices": ["hot", "cold", "blue"], "answer": n % 3} for n in range(8)]
    write(tmp_path / "questions.jsonl", rows)
    for name, kind, text in (("choice", "multiple_choice", CHOICE), ("words", "loglikelihood", PERPLEXITY)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=f"tiny_{name}", folder=tmp_path, kind=kind) + text)
    return tmp_path


def test_tiny_tasks_before_and_after(tiny_model: Path, folder: Path) -> None:
    save_adapter(tiny_model, folder / "adapter")
    load_tokenizer(PolicySpec(str(tiny_model))).save_pretrained(folder / "adapter")
    policy = open_run(folder / "adapter").load("cpu")
    settings = TaskSettings(["tiny_choice", "tiny_words"], str(folder), limit=6)
    choice, words = run_tasks(policy, settings)
    assert (choice.task, choice.metric, choice.questions, choice.paired) == ("tiny_choice", "acc", 6, True)
    assert choice.standard_error is not None
    assert (words.metric, words.paired, words.higher_is_better) == ("perplexity", False, False)
    assert words.difference != 0, "the adapter is off before and on after"


def test_the_command_runs_tasks_alone(tiny_model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_adapter(tiny_model, folder / "adapter")
    load_tokenizer(PolicySpec(str(tiny_model))).save_pretrained(folder / "adapter")
    run = ["evaluate", "--run", str(folder / "adapter"), "--win_rate", "false", "--output", str(folder / "out")]
    assert main(run) == 2
    assert "there are no --tasks" in capsys.readouterr().err
    assert main([*run, "--tasks", "tiny_choice", "--task_folder", str(folder), "--limit", "4"]) == 0
    record = json.loads((folder / "out/tasks.json").read_text())
    assert (record["tasks"][0]["questions"], record["settings"]["limit"]) == (4, 4)
    assert "tiny_choice" in capsys.readouterr().out
    assert not (folder / "out/evaluation.json").exists()


def test_a_model_without_a_start_is_refused(tiny_model: Path, folder: Path) -> None:
    policy = open_run(tiny_model).load("cpu")
    with pytest.raises(ValueError, match="nothing to compare with"):
        run_tasks(policy, TaskSettings(["tiny_choice"], str(folder)))


def test_the_numbers_are_plain(tmp_path: Path) -> None:
    (change,) = compare_results(results([1, 0, 1, 1]), results([1, 0, 0, 0]))
    assert json.loads(json.dumps(change.__dict__))["paired"] is True


def test_without_the_harness_the_error_names_the_extra(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'lit-align\[lm-eval\]'"):
        run_tasks(open_run(tiny_model).load("cpu"), TaskSettings(["any"]))
