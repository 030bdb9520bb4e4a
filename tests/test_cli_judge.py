"""`lit-align judge` and the command line's overview, messages and lock, through the real command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lit_align import run_folder
from lit_align.cli import main
from lit_align.cli.app import AlignmentCLI
from lit_align.cli.help import COMMANDS

ROOT = Path(__file__).parents[1]
RULES = """
def by_length(prompt, candidates, row):
    return [len(text) for text in candidates]

def by_word(prompt, candidates, row):
    return [float("tea" in text) for text in candidates]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [
        {"prompt": f"Give fact {n}.", "chosen": f"tea {n}", "rejected": "sea" if n % 2 else f"a very long sea {n}"}
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge_rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def judge(rule: str, *args: str) -> int:
    return main(
        ["judge", "--data.train", "rows.jsonl", "--data.judge", "RuleJudge", f"--data.judge.rule={rule}", *args]
    )


def test_a_good_judge_and_one_of_length(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("judge_rules.by_word", "--output", "out/j.json") == 0
    quality = json.loads((folder / "out/j.json").read_text())
    assert (quality["accuracy"]["value"], quality["pairs"], quality["warnings"]) == (1.0, 40, [])
    assert quality["length"]["longer_rule"]["value"] == 0.5 and quality["rows"]["rows"] == 40
    assert "100.0 %" in capsys.readouterr().out
    assert judge("judge_rules.by_length", "--max_pairs", "30", "--confidence", "0.9") == 0
    out = capsys.readouterr().out
    assert "Pairs: 30" in out and "It prefers by length" in out


def test_the_config_of_a_run_will_do_and_its_policy_is_not_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "configs/quickstart.yaml")
    options = ["--data.train", "rows.jsonl", "--data.val", "null", "--data.judge.rule", "judge_rules.by_word"]
    assert main(["judge", "--config", config, *options]) == 0
    assert "Pairs: 40" in capsys.readouterr().out


def test_held_out_pairs_are_those_of_a_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--held_out", "true", "--data.val_fraction", "0.25", "--seed_everything", "3"]
    assert judge("judge_rules.by_word", *args) == 0
    assert "Pairs: 10" in capsys.readouterr().out
    assert judge("judge_rules.by_word", "--held_out", "true") == 2
    assert "val_fraction" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.train", "rows.jsonl"], "there is no judge to measure: set `data.judge`"),
        (["--data.train", "rows.jsonl", "--data.juge", "x"], "did you mean `data.judge`?"),
        (["--data.judge", "RecordedScores"], "train"),
    ],
)
def test_wrong_usage_is_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert main(["judge", *args]) == 2
    assert message in capsys.readouterr().err


def test_rows_without_labels_are_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "x", "candidates": ["a", "b"]}\n')
    assert judge("judge_rules.by_word") == 1
    assert "expected labelled pairs" in capsys.readouterr().err


def test_the_overview_names_every_command_and_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    own = {"init", "judge", "export", "evaluate", "chat", "sample", "report", "completion", "doctor"}
    assert set(COMMANDS) == {*AlignmentCLI.subcommands(), *own}
    code = (
        "import sys; from lit_align.cli import main; main(['--help']); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert main([]) == 0 and "usage: lit-align" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mesure"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command `mesure`: did you mean `measure`?")


def test_keys_belong_where_a_number_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(ROOT / "configs/quickstart.yaml"), "--model.policy.lora", "4"]) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert "takes keys, not the value 4: set `model.policy.lora.r`" in error


def test_a_model_of_unknown_type_is_one_sentence(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "nonsense"}))
    run = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]
    command = ["fit", "--config", "configs/quickstart.yaml", "--model.policy.model", str(tmp_path), *run]
    assert main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert "does not know models of the type `nonsense`" in error[-2] and "git+" not in "".join(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.accelerator=gpu"], "there is no GPU here that torch can use: --trainer.accelerator cpu"),
        (["--model.base.model=broken"], "a file of weights (.safetensors) is broken or cut short ("),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=lss"], "EarlyStopping looks at `lss`"),
        (["--trainer.max_steps=-2"], "`max_steps` must be a non-negative integer or -1"),
    ],
)
def test_what_lightning_and_safetensors_refuse_is_one_message(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "--trainer.accelerator=gpu" in options and torch.cuda.is_available():
        pytest.skip("a machine with a GPU")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "broken")
    weights = Path("broken/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    Path("rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    command = [
        "fit", "--config", str(ROOT / "configs/reward_model.yaml"), "--data.train=rows.jsonl", "--data.val_fraction=0",
        "--model.base.model", str(tiny_model), "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert main([*command, *options]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-2].startswith(f"error: {message}") and error[-1] == "(--debug shows where)"


def test_a_command_for_policies_refuses_a_reward_model(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs/reward_model.yaml")
    assert main(["measure", "--config", config]) == 2
    assert "`measure` is for policies, and the config's model is a RewardModule" in capsys.readouterr().err


HOLD = """
import sys, time
from pathlib import Path
from lit_align.run_folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_folder_is_one_process_s_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    root = tmp_path / "run"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(
                run_folder.RunFolderInUse, match=rf"{root} is in use: process {holder.pid} on .*default_root"
            ),
            run_folder.locked(root),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    time.sleep(0.05)
    assert (root / ".lock").exists()  # what a kill leaves behind keeps nobody out
    with run_folder.locked(root):
        (root / "file").touch()
    assert [path.name for path in root.iterdir()] == ["file"]
    with run_folder.locked(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()


def test_a_fit_in_a_folder_in_use_is_refused_and_touches_nothing(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    (root / "summary.json").write_text("{}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    command = [
        "fit", "--config", str(ROOT / "configs/reward_model.yaml"), "--data.train", str(rows), "--data.val_fraction=0",
        "--model.base.model", str(tiny_model), "--trainer.accelerator=cpu", f"--trainer.default_root_dir={root}",
    ]  # fmt: skip
    with run_folder.locked(root):
        assert main(command) == 1
    assert f"{root} is in use: process {os.getpid()}" in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir()) == ["summary.json"]
    assert main(command) == 0
    summary = json.loads((root / "summary.json").read_text())
    assert summary["crossing"] is None and summary["outputs"]["reward model"] == str(root / "reward_model")
    assert "not measured" not in capsys.readouterr().out
    assert (root / "reward_model/model.safetensors").is_file() and (root / "previous/1/summary.json").is_file()
