"""The benchmarks run, at sizes that take seconds, and what they write can be trusted."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from tests.helpers.processes import run_script

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"

pytest.importorskip("trl", minversion="1.16", reason="TRL is what the benchmarks compare with")


def run(script: str, output: Path, *options: str) -> CompletedProcess[str]:
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }
    arguments = ["--threads", "1", "--output", str(output), *options]
    return run_script(BENCHMARKS / script, *arguments, folder=output.parent, environment=environment)


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("side")


def test_full_training_has_the_losses_of_trl(tmp_path: Path) -> None:
    output = tmp_path / "parity.json"
    ran = run("parity.py", output, "--steps", "4")
    assert ran.returncode == 0, ran.stderr
    written = json.loads(output.read_text())
    assert written["equal"] and len(written["lit_align"]) == len(written["trl"]) == 4
    assert max(abs(a - b) for a, b in zip(written["lit_align"], written["trl"], strict=True)) <= 1e-4
    assert len({round(loss, 4) for loss in written["lit_align"]}) == 4  # it trained
    assert "| 3    |" in ran.stdout and "equal" in ran.stdout


def test_training_that_differs_is_told(tmp_path: Path) -> None:
    output = tmp_path / "parity.json"
    ran = run("parity.py", output, "--steps", "3", "--trl-learning-rate", "2e-3")
    assert ran.returncode == 1, ran.stderr
    assert not json.loads(output.read_text())["equal"] and "NOT EQUAL" in ran.stdout


def test_a_step_of_both_sides_is_timed(tmp_path: Path) -> None:
    output = tmp_path / "step.json"
    tiny = ["--hidden", "48", "--layers", "2", "--vocabulary", "300", "--pairs", "2"]
    turns = ["--repeats", "2", "--consecutive", "2"]
    ran = run("step.py", output, "--peer", "trl", *tiny, *turns, "--shapes", "12+2x8")
    assert ran.returncode == 0, ran.stderr
    written = json.loads(output.read_text())
    assert written["machine"]["threads"] == 1 and written["machine"]["versions"]["trl"].startswith("1.")
    (result,) = written["results"]
    assert (result["shape"]["prompt"], result["shape"]["completion"]) == (12, 8)
    assert result["work"]["multiply_adds"] > result["work"]["parameters"] > result["work"]["trained"] > 0
    lit, peer = result["lit_align"], result["peer"]
    for timed in (lit, peer):
        assert len(timed["all_seconds"]) == 2 * 2 and min(timed["all_seconds"]) > 0
        assert timed["peak_memory"] >= timed["resident_before_training"] > 0
        assert timed["pairs_per_second"] == pytest.approx(2 / timed["seconds"])
    assert result["speed_ratio"] == pytest.approx(peer["seconds"] / lit["seconds"])
    assert result["floor_seconds"] > 0
    assert lit["of_floor"] == pytest.approx(lit["seconds"] / result["floor_seconds"])
    assert "| 12 + 2x8 " in ran.stdout


def test_the_gpu_s_steps_are_rehearsed(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    ran = run("gpu.py", output, "--rehearse")
    assert ran.returncode == 0, ran.stderr
    written = json.loads(output.read_text())
    assert written["rehearsal"] and len(written["results"]) == 2 * 3
    for result in written["results"]:
        assert result["lit_align"]["multiply_adds"] == result["trl"]["multiply_adds"] > 0, result
        for side in (result["lit_align"], result["trl"]):
            assert side["pairs_per_second"] == pytest.approx(result["pairs"] / side["seconds"])
            assert 0 < side["of_floor"] < 1
    assert "| tiny NF4" in ran.stdout


def test_shapes_are_measured_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    step = importlib.import_module("step")
    monkeypatch.setattr(sys, "argv", ["step.py", "--shapes", "12+2x8", "chat", "9+2x5"])
    shapes = [(shape.prompt, shape.completion) for shape in step._options().shapes]
    assert shapes == [(12, 8), (60, 120), (9, 5)]


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    ran = run(
        "step.py", tmp_path / "step.json", "--model", str(tmp_path / "none"), "--shapes", "chat", "--repeats", "1"
    )
    assert ran.returncode != 0 and "ended early" in ran.stderr and str(tmp_path / "none") in ran.stderr


def test_rounds_of_both_sides_are_timed(tiny_model: Path, tmp_path: Path) -> None:
    output, data = tmp_path / "onpolicy.json", tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in (1, 1, 2, 3, 4, 5, 6)))
    sizes = ["--prompts", "5", "--new-tokens", "6", "--peer-prompts", "2", "--repeats", "2"]
    ran = run("onpolicy.py", output, "--model", str(tiny_model), "--data", str(data), *sizes)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(output.read_text())["result"]
    lit, peer = result["lit_align"], result["peer"]
    for timed in (lit, peer):
        assert len(timed["rounds"]) == 2 and timed["peak_memory"] > 0
        seconds = [each["seconds"] for each in timed["rounds"]]
        assert timed["seconds"] == pytest.approx(sum(seconds) / 2) and min(seconds) > 0
    for each in lit["rounds"]:
        assert each["pairs"] + each["ties"] <= 5 and each["pairs"] > 0
        assert 0 < each["sample_seconds"] + each["judge_seconds"] + each["reference_seconds"] <= each["seconds"]
    assert [each["pairs"] for each in peer["rounds"]] == [5, 5]
    assert all(5 * 2 <= each["tokens"] <= 5 * 2 * 6 for each in peer["rounds"])
    assert result["speed_ratio"] == pytest.approx(lit["pairs_per_second"] / peer["pairs_per_second"])
    assert "| lit-align |" in ran.stdout


def test_too_few_prompts_are_told(tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "One."}\n{"prompt": "One."}\n')
    ran = run("onpolicy.py", tmp_path / "o.json", "--data", str(data), "--prompts", "2")
    assert ran.returncode != 0 and "expected 2 different prompts" in ran.stderr


class OneLayer(nn.Module):
    """A frozen layer, an adapter's weight and a head; two attention layers of width 4 by its configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.adapter = nn.Linear(4, 2, bias=False)
        self.head = nn.Linear(4, 10, bias=False).requires_grad_(False)
        self.config = type("Config", (), {"num_attention_heads": 2, "hidden_size": 4, "num_hidden_layers": 2})()

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_the_work_of_a_step_by_hand(side: ModuleType) -> None:
    settings: dict[str, Any] = {"pairs": 3, "prompt": 2, "completion": 1}
    work = side.work(OneLayer(), settings)
    tokens = 3 * (2 + 1 + 1)
    linear = 2 * tokens * 16 + 3 * tokens * 8  # a trained weight has a product for its own gradient too
    head = 2 * 6 * 40  # 6 completion tokens
    seen = 1 + 2 + 3 + 3  # each completion token sees the prompt and itself
    attention = 2 * 6 * 4 * 3 * seen  # layers, products, width, pairs
    assert work == {"multiply_adds": linear + head + attention, "parameters": 16 + 8 + 40, "trained": 8}
    assert side.work(OneLayer(), {**settings, "prompt": 1})["multiply_adds"] < work["multiply_adds"]
