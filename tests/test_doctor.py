"""`lit-align doctor`: its checks pass here, and each of them fails where what it checks is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_align.batch import Padded
from lit_align.cli import main
from lit_align.doctor import exactness, fits, memory, speed
from lit_align.doctor.environment import bench_device, describe, environment_lines
from lit_align.doctor.findings import Bench, Check, Failed, Finding, Observation, Skipped, make
from lit_align.doctor.models import RandomLlama, byte_tokenizer
from lit_align.doctor.run import CHECKS, choose, examine
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, load_model, plain_logps
from lit_align.training.module import AlignmentModule
from lit_align.training.out_of_memory import SplitOnOOM

CPU = torch.device("cpu")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(CPU, tmp_path, seconds=0.0)


NOT_HERE = {"liger"} | ({"int8", "fp8"} if exactness.find_spec("torchao") is None else set())
CASES = [name for name in exactness.CASES if name not in NOT_HERE]


def test_what_is_not_installed_is_skipped(bench: Bench) -> None:
    findings = [make(check, bench) for check in exactness.CHECKS if check.name.removeprefix("logps/") in NOT_HERE]
    assert [finding.status for finding in findings] == ["skipped"] * len(NOT_HERE)


@pytest.mark.parametrize("name", CASES)
def test_log_probs_and_gradients_are_those_of_plain_rows(bench: Bench, name: str) -> None:
    seen = exactness.compare(exactness.CASES[name], bench)
    assert 0 < seen.figures["largest_difference"] <= seen.figures["allowed"]


def seeing_the_other(model: nn.Module, prompt: Padded, completions: Sequence[Padded]) -> list[Any]:
    """A wrong attention: the rejected completion sees the chosen one."""
    chosen, rejected = completions
    longer = [
        [*prompt.ids[row][prompt.mask[row]].tolist(), *chosen.ids[row][chosen.mask[row]].tolist()]
        for row in range(len(prompt.ids))
    ]
    return plain_logps(model, prompt, [chosen]) + plain_logps(model, Padded.from_sequences(longer, 0), [rejected])


@pytest.mark.parametrize("name", CASES)
def test_an_attention_between_completions_is_found(bench: Bench, name: str) -> None:
    with pytest.raises(Failed, match="log-probs differ by"):
        exactness.compare(exactness.CASES[name], bench, seeing_the_other)


@pytest.mark.parametrize("name", ["float32", "nf4"])
def test_an_adapter_of_another_scale_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = exactness.load_model

    def wrong(spec: PolicySpec) -> nn.Module:
        model = right(spec)
        for layer in model.modules():
            if hasattr(layer, "lora_A"):
                layer.scaling["default"] *= 1.05
        return model

    monkeypatch.setattr(exactness, "load_model", wrong)
    with pytest.raises(Failed):
        exactness.compare(exactness.CASES[name], bench)


def test_compiling_needs_a_compiler(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Skipped, match="compiler"):
        next(check for check in CHECKS if check.name == "logps/compile").run(bench)


def test_a_fit_swaps_and_resumes(bench: Bench) -> None:
    seen = fits.check_fit(bench)
    assert seen.figures["difference"] == 0 and len(set(seen.figures["losses"])) == fits.STEPS


def test_a_swap_at_another_step_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits.SwapAt, "decide", lambda self, step, *_: fits.Choice(float(step >= 4), "late"))
    with pytest.raises(Failed, match="wrong source"):
        fits.check_fit(bench)


def test_a_resume_without_the_optimizer_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = AlignmentModule.on_load_checkpoint

    def forget(self: AlignmentModule, checkpoint: dict[str, Any]) -> None:
        right(self, checkpoint)
        for state in checkpoint["optimizer_states"][0]["state"].values():
            state["exp_avg"].zero_()

    monkeypatch.setattr(AlignmentModule, "on_load_checkpoint", forget)
    with pytest.raises(Failed, match="resumed weights differ"):
        fits.check_fit(bench)


@pytest.mark.parametrize("name", [name for name in memory.PLANS if name not in NOT_HERE])
def test_the_plan_is_near_the_measured_peak(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(memory, "SMALL", RandomLlama(hidden=96, layers=2, vocabulary=2048))
    seen = memory.check_plan(memory.PLANS[name], bench)
    assert seen.figures["planned"] == pytest.approx(seen.figures["measured"], rel=memory.NEAR)
    right = memory.simulate

    def low(setup: Any) -> Any:
        plan = right(setup)
        return replace(plan, moments={name: {"all": int(0.8 * sum(of.values()))} for name, of in plan.moments.items()})

    monkeypatch.setattr(memory, "simulate", low)
    with pytest.raises(Failed, match="15% apart"):
        memory.check_plan(memory.PLANS[name], bench)


@pytest.fixture
def parts(bench: Bench) -> Callable[[int], tuple[SplitOnOOM, Tensor]]:
    """The gradients of four pairs on a card of so many."""
    size = RandomLlama(hidden=96, layers=2, vocabulary=512)
    spec = PolicySpec(str(size.save(bench.folder / "model")), lora=LoraSpec(r=2))
    model = load_model(spec)
    forward = CompletionForward()
    batch = memory._batch(4, size, bench)

    def on_a_card_of(pairs: int) -> tuple[SplitOnOOM, Tensor]:
        def run(some: Any) -> Any:
            if len(some) > pairs:
                raise torch.OutOfMemoryError
            return memory._forward(model, forward, some)

        split = SplitOnOOM(spec)
        return split, memory._gradients(model, batch, run, split)

    return on_a_card_of


def test_a_micro_batch_in_parts_is_compared_with_the_whole(parts: Any) -> None:
    unsplit, whole = parts(4)
    split, gradients = parts(2)
    assert "tokens at once" in memory.compare_split(split, gradients, whole).text
    with pytest.raises(Failed, match="was not split"):
        memory.compare_split(unsplit, whole, whole)
    with pytest.raises(Failed, match="gradients differ"):
        memory.compare_split(split, 1.01 * whole, whole)


def test_steps_and_sampling_are_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ON_CPU", speed.Load(RandomLlama(hidden=48, layers=1, vocabulary=300), 1, 12, 6))
    monkeypatch.setattr(speed, "SLOWER", 1e9)
    monkeypatch.setattr(speed, "product_rates", lambda device: {"float32": 2e9, "bfloat16": 1e9})
    for number, check in enumerate(speed.CHECKS):
        folder = bench.folder / str(number)
        folder.mkdir()
        if check.name != "speed/trl" or speed.find_spec("trl") is not None:
            assert check.run(replace(bench, folder=folder)).figures


@pytest.mark.parametrize(("ours", "is_right"), [(1.0, True), (2.0, False)])
def test_a_step_slower_than_its_peers_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ours: float, is_right: bool
) -> None:
    RandomLlama(hidden=48, layers=1, vocabulary=300).save(bench.folder / "model")

    def seconds(load: Any, bench: Bench, share: float, forward: Any = None) -> dict[str, Any]:
        return {"seconds": 1.0 if forward is speed.plain_rows else ours, "multiply_adds": 1e9}

    monkeypatch.setattr(speed, "lit_seconds", seconds)
    monkeypatch.setattr(speed, "trl_seconds", lambda *_, **__: [1.0])
    monkeypatch.setattr(speed, "find_spec", lambda name: name)
    monkeypatch.setattr(speed, "product_rates", lambda device: {"float32": 2e9, "bfloat16": 1e9})
    for check in (speed.check_step, speed.check_trl):
        finding = make(Check("x", check), bench)
        assert finding.status == ("ok" if is_right else "failed"), finding.text
    assert speed.faster_dtype(CPU) == "float32"


def broken(error: Exception) -> Check:
    def run(bench: Bench) -> Observation:
        print("noise")
        os.write(1, b"noise of a library")
        raise error

    return Check(f"group/{type(error).__name__}", run, seconds=1.0)


def test_no_check_ends_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    after = Check("group/after", lambda bench: Observation(str(bench.folder.is_dir())), seconds=1.0)
    long = Check("group/long", lambda bench: Observation(""), seconds=100.0)
    checks = [broken(ZeroDivisionError("by zero")), broken(Failed("wrong", by=3)), broken(Skipped("no")), long, after]
    seen: list[Finding] = []
    findings = examine(checks, CPU, 50.0, end=seen.append)
    assert findings == seen and [finding.status for finding in findings] == [
        "failed", "failed", "skipped", "skipped", "ok",
    ]  # fmt: skip
    assert findings[0].text == "ZeroDivisionError: by zero" and "broken" not in findings[0].text
    assert findings[1].figures == {"by": 3} and findings[2].text == "no" and findings[4].text == "True"
    assert "takes about 100 s" in findings[3].text
    assert capfd.readouterr().out == ""


def test_the_command_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "doctor.json"
    assert main(["doctor", "--device", "cpu", "--only", "logps/float32", "memory/too-large", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "ok       logps/float32" in printed and "1 ok, 0 failed, 1 skipped" in printed
    written = json.loads(file.read_text())
    assert written["right"] and [check["status"] for check in written["checks"]] == ["ok", "skipped"]
    assert written["environment"]["versions"]["torch"] == torch.__version__


def test_the_exit_code_tells_that_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_align.doctor.run.CHECKS", (broken(Failed("wrong")),))
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--device", "cpu"])
    assert end.value.code == 1


def test_unknown_checks_and_devices_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--only", "network"]) == 1
    assert "there is no such check. Groups: fit, logps, memory, speed." in capsys.readouterr().err
    assert [check.name for check in choose(["fit", "logps/nf4"])] == ["logps/nf4", "fit/swap-and-resume"]
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            bench_device("cuda")


def test_the_machine_is_described_without_its_names() -> None:
    environment = describe(CPU)
    lines = "\n".join(environment_lines(environment))
    assert f"torch {torch.__version__}" in lines and "sdpa" in lines
    assert os.uname().nodename not in lines and str(Path.home()) not in lines
    environment["extras"] = {"vllm": ["vllm>=1"], "wandb": []}
    assert environment_lines(environment)[-1] == "not here   vllm: pip install 'lit-align[vllm]'"


@pytest.mark.parametrize("text", ["Bees make honey.", "æøå \n\t 蜂蜜 🐝", ""])
def test_the_tokenizer_of_bytes_writes_any_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
