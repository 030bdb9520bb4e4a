"""`lit-align evaluate` through the real command, on a tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_align.cli import main
from lit_align.evaluate.reading import read_answers
from tests.helpers.data_fakes import write

CONFIG = """
model:
  class_path: lit_align.AlignmentModule
  init_args:
    policy: {model: MODEL, dtype: float32, lora: {r: 2}}
    loss: {class_path: lit_align.losses.DPO}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.1}}
data:
  class_path: lit_align.AlignmentDataModule
  init_args:
    train: train.jsonl
    val: val.jsonl
    batch_size: 2
    judge: {class_path: RuleJudge, init_args: {rule: evaluate_rules.vowels}}
    sampler: {class_path: TransformersSampler, init_args: {num_candidates: 2, max_new_tokens: 6}}
boundary: {class_path: lit_align.BoundaryCallback, init_args: {every_n_steps: 2, max_prompts: 4, batch_prompts: 4}}
trainer: {accelerator: cpu, max_steps: 2, default_root_dir: runs/tiny, logger: false, enable_progress_bar: false}
"""
RULES = """
def vowels(prompt, candidates, row):
    return [sum(letter in "aeiou" for letter in text) for text in candidates]

def of_row(prompt, candidates, row):
    return [float(row["topic"] in text) for text in candidates]
"""


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Ask{n} me{n * 3} of tea", "chosen": "a tea", "rejected": "xyz", "topic": "tea",
            "category": "odd" if n % 2 else "even",
        }
        for n in range(start, start + count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run, made once for all tests."""
    folder = tmp_path_factory.mktemp("fitted")
    write(folder / "train.jsonl", rows(0, 6))
    write(folder / "val.jsonl", rows(100, 12))
    (folder / "evaluate_rules.py").write_text(RULES)
    (folder / "config.yaml").write_text(CONFIG.replace("MODEL", str(tiny_model)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        assert main(["fit", "--config", "config.yaml"]) == 0
    return folder


@pytest.fixture
def folder(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    target = tmp_path / "work"
    shutil.copytree(fitted, target)
    monkeypatch.chdir(target)
    monkeypatch.syspath_prepend(str(target))
    return target


def result(name: str) -> dict[str, Any]:
    return json.loads(Path("runs/tiny/evaluations", name, "evaluation.json").read_text())


def test_against_the_start_on_prompts_that_it_has_not_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "tiny against its start, on 6 prompts" in shown and "the run's own" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    record = result("against_base")
    assert (record["win_rate"]["prompts"], record["against"], record["own_judge"]) == (6, "base", True)
    assert {name: rate["prompts"] for name, rate in record["categories"].items()}.keys() <= {"odd", "even"}
    place = folder / "runs/tiny/evaluations/against_base"
    answered = read_answers(str(place / "prompts.parquet"))
    held_out = {row["prompt"] for row in rows(100, 12)}
    measured = {json.loads(line)["prompt"] for line in Path("runs/tiny/samples.jsonl").read_text().splitlines()}
    evaluated = {candidates.prompt[0].content for candidates in answered}
    assert evaluated <= held_out and not evaluated & measured
    assert {path.name for path in (place / "mt_bench/model_answer").iterdir()} == {"tiny.jsonl", "base.jsonl"}
    assert len(json.loads((place / "alpaca_eval/annotations.json").read_text())) == 6


def test_against_itself_it_is_half(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "tiny", "--against", "runs/tiny/checkpoints/last.ckpt", "--max_prompts", "4"]) == 0
    record = result("against_last")
    rate = record["win_rate"]
    assert (rate["score"], rate["length_controlled"]["score"], rate["ties"]) == (0.5, 0.5, 4)
    assert record["left_out"] == {"beyond the limit": 2}
    assert "Both sides gave the same answers" in capsys.readouterr().out


def test_against_a_file_of_answers_on_its_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen, fresh = rows(0, 2), rows(900, 3)
    answers = [{"instruction": row["prompt"], "output": "aeiou " * 20, "topic": "tea"} for row in (*seen, *fresh)]
    write(folder / "gpt.jsonl", answers)
    judge = ["--judge", "RuleJudge", "--judge.rule", "evaluate_rules.vowels"]
    assert main(["evaluate", "--run", "tiny", "--against", "gpt.jsonl", *judge]) == 0
    record = result("against_gpt")
    assert (record["win_rate"]["losses"], record["left_out"], record["own_judge"]) == (3, {"trained on": 2}, False)
    assert "the run's own" not in capsys.readouterr().out
    write(folder / "ask.jsonl", fresh[:1] + rows(700, 1))
    assert main(["evaluate", "--run", "tiny", "--against", "gpt.jsonl", "--prompts", "ask.jsonl", "--output", "o"]) == 0
    record = json.loads(Path("o/evaluation.json").read_text())
    assert (record["win_rate"]["prompts"], record["left_out"]) == (1, {"without an answer there": 1})


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("against_base", "against_base_2"):
        assert main(["evaluate", "--run", "tiny", "--max_prompts", "2"]) == 0
        assert result(name)["win_rate"]["prompts"] == 2
    assert main(["evaluate", "--run", "tiny", "--output", "runs/tiny/evaluations/against_base"]) == 1
    assert "choose another --output" in capsys.readouterr().err


def test_a_model_folder_takes_prompts_and_a_judge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "runs/tiny", "--output", "exported"]) == 0
    assert main(["evaluate", "--run", "exported"]) == 2
    assert "give one with --judge" in capsys.readouterr().err
    judge = ["--judge", "RuleJudge", "--judge.rule", "evaluate_rules.of_row"]
    assert main(["evaluate", "--run", "exported", *judge]) == 1
    assert "--prompts FILE" in capsys.readouterr().err
    sampler = ["--sampler", "TransformersSampler", "--sampler.max_new_tokens", "4"]
    assert main(["evaluate", "--run", "exported", *judge, *sampler, "--prompts", "val.jsonl"]) == 0
    assert json.loads(Path("evaluations/exported_base/evaluation.json").read_text())["win_rate"]["prompts"] == 12


def test_a_base_that_has_moved_is_named(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_model, "moved")
    config = Path("runs/tiny/config.yaml")
    config.write_text(config.read_text().replace(str(tiny_model), "gone/model"))
    assert main(["evaluate", "tiny", "--max_prompts", "2"]) == 1
    assert "--base names its place now" in capsys.readouterr().err
    assert main(["evaluate", "tiny", "--max_prompts", "2", "--base", "moved"]) == 0
    assert result("against_base")["win_rate"]["prompts"] == 2


def test_arguments_of_a_sampler_that_is_not_named_say_where_the_runs_own_is_set(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "tiny", "--sampler.max_new_tokens", "3"]) == 2
    error = capsys.readouterr().err
    assert "--sampler CLASS names one" in error and "--data.sampler.max_new_tokens sets it for the run's own" in error
    assert main(["evaluate", "tiny", "--data.sampler.max_new_tokens=3", "--max_prompts", "2"]) == 0


def test_wrong_usage_says_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate"]) == 2
    assert "needs --run RUN" in capsys.readouterr().err
    assert main(["evaluate", "--run", "tiny", "--agianst", "base"]) == 2
    assert "did you mean `against`" in capsys.readouterr().err
    assert main(["evaluate", "--run", "tiny", "--prompts", "train.jsonl"]) == 1
    assert "the run was trained on 6" in capsys.readouterr().err
    assert main(["evaluate", "--run", "tiny", "--max_prompts", "0"]) == 1
    assert main(["evaluate", "--run", "tiny", "--confidence", "95"]) == 1
    errors = capsys.readouterr().err
    assert "max_prompts to be at least 1" in errors and "confidence to be in (0, 1)" in errors


def test_an_engine_that_holds_the_adapter_does_not_answer_as_the_start(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ["--sampler", "ServerSampler", "--sampler.base_url", "http://127.0.0.1:9/v1"]  # nobody answers there
    args = [*engine, "--sampler.max_new_tokens", "5", "--max_prompts", "3"]
    assert main(["evaluate", "--run", "tiny", *args]) == 0
    assert "sampled by the model itself" in capsys.readouterr().out
    assert result("against_base")["win_rate"]["prompts"] == 3
