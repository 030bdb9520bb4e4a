"""`lit-align` from end to end on a tiny model, as a user runs it: a folder, a config, a file of one's own beside it."""

from __future__ import annotations

import gzip
import json
import logging
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_align.cli import main
from lit_align.cli.init import copy_user_files, user_files
from lit_align.cli.quiet import LOGGERS

ROOT = Path(__file__).parents[1]

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  max_steps: 4
  accumulate_grad_batches: 2
  default_root_dir: run
  callbacks:
    - class_path: WinRateCallback
      init_args: {num_prompts: 3}
model:
  class_path: AlignmentModule
  init_args:
    policy:
      model: MODEL
      lora: {r: 2}
    loss:
      class_path: mine.Margin
      init_args: {scale: 0.5}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {lr: 1.0e-3}
data:
  class_path: AlignmentDataModule
  init_args:
    train: rows.jsonl
    val_fraction: 0.25
    batch_size: 2
    round_prompts: 3
    judge:
      class_path: RuleJudge
      init_args: {rule: mine.variety}
    sampler:
      class_path: TransformersSampler
      init_args: {num_candidates: 2, max_new_tokens: 4}
boundary:
  class_path: mine.Half
  init_args: {every_n_steps: 2, max_prompts: 3}
"""

MINE = """
from lit_align.boundary import BoundaryCallback
from lit_align.losses import LossOutput, PreferenceLoss

class Margin(PreferenceLoss):
    needs_reference = False

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, pairs):
        chosen, rejected = self.scale * pairs.policy_chosen_logps, self.scale * pairs.policy_rejected_logps
        return LossOutput(rejected - chosen, chosen.detach(), rejected.detach())

class Half(BoundaryCallback):
    def on_policy_share(self, result, history):
        return 0.5

def variety(prompt, candidates, row):
    return [len(set(text)) / (1 + len(text)) for text in candidates]
"""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Undoes what `main` does to a process that it expects to have to itself."""
    path, modules, shown = list(sys.path), set(sys.modules), warnings.formatwarning
    with warnings.catch_warnings():
        yield
    warnings.formatwarning = shown
    sys.path[:] = path
    for name in {"mine"} & (set(sys.modules) - modules):
        del sys.modules[name]
    for name in LOGGERS:
        logging.getLogger(name).filters.clear()


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data, a config and a user's own loss, schedule and rule."""
    rows = [{"prompt": f"Give fact {n}.", "candidates": [f"tea {n}", f"much longer tea {n}", "sea"]} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.yaml").write_text(CONFIG.replace("MODEL", str(tiny_model)))
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # Lightning sets it, and leaves it set
    return tmp_path


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `boundary.jsonl` without what a clock says."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "share_of_training")} for row in rows]


def test_fit_fills_the_run_folder_and_prints_a_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "c.yaml"]) == 0
    captured = capsys.readouterr()
    run = folder / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "boundary.jsonl", "samples.jsonl", "answers.jsonl", "summary.json", "csv", "tensorboard",
        "checkpoints", "model", "report.html",
    }  # fmt: skip
    assert [row["step"] for row in jsonl(run / "boundary.jsonl")] == [0, 2, 4]
    assert {row["on_policy_share"] for row in jsonl(run / "boundary.jsonl")} == {0.5}

    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["decisions"] == jsonl(run / "boundary.jsonl")
    assert summary["win_rate"]["prompts"] == 2
    assert summary["rows"]["pairs"] == 12
    assert len(summary["rounds"]) >= 1
    assert all(Path(path).exists() for path in summary["outputs"].values())
    assert summary["seconds"]["total"] >= summary["seconds"]["training"] > 0
    assert summary["crossing"]["text"].split("(")[0] in captured.out
    assert "Win rate against the start" in captured.out

    for logger in ("csv", "tensorboard"):
        shown = yaml.safe_load((run / logger / "version_0/hparams.yaml").read_text())
        assert shown["model"]["init_args"]["loss"] == {"class_path": "mine.Margin", "init_args": {"scale": 0.5}}
        assert shown == yaml.safe_load((run / "config.yaml").read_text()), "the whole configuration"

    header = (run / "csv/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("loss", "rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen", "boundary/score"):
        assert name in header, name
    assert "win_rate/score" in header
    for noise in ("litlogger", "GPU available", "num_workers", "`Trainer.fit` stopped", "v_num"):
        assert noise not in captured.out + captured.err, noise


def test_a_trial_leaves_the_files_of_an_earlier_run_alone(folder: Path) -> None:
    assert main(["fit", "--config", "c.yaml"]) == 0

    def files() -> dict[Path, bytes]:
        kept = ("boundary.jsonl", "samples.jsonl", "answers.jsonl", "summary.json", "checkpoints/last.ckpt")
        return {Path(name): (folder / "run" / name).read_bytes() for name in kept}

    before = files()
    assert main(["fit", "--config", "c.yaml", "--trainer.fast_dev_run", "true"]) == 0
    assert files() == before


def test_plain_lines_count_optimizer_steps_and_show_the_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", "c.yaml"])
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")][-1]
    assert last.startswith("step 4 of 4 | "), last
    for part in ("50 % on-policy", "loss ", "acc ", "margin "):
        assert part in last
    assert ("tuning" in last) != ("injection" in last)


def test_the_saved_config_runs_again_and_the_earlier_run_is_kept(folder: Path) -> None:
    main(["fit", "--config", "c.yaml"])
    first = jsonl(folder / "run/boundary.jsonl")
    (folder / "again.yaml").write_text((folder / "run/config.yaml").read_text())
    assert main(["fit", "--config", "again.yaml"]) == 0
    assert jsonl(folder / "run/previous/1/boundary.jsonl") == first
    assert timeless(jsonl(folder / "run/boundary.jsonl")) == timeless(first)


def test_last_goes_on_and_the_command_line_beats_the_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", "c.yaml"])
    before = jsonl(folder / "run/boundary.jsonl")
    capsys.readouterr()
    args = ["--trainer.max_steps", "6", "--model.loss.scale", "0.25", "--ckpt_path", "last"]
    assert main(["fit", "--config", "c.yaml", *args]) == 0
    after = jsonl(folder / "run/boundary.jsonl")
    assert after[:3] == before and [row["step"] for row in after] == [0, 2, 4, 6]
    assert sorted(path.name for path in (folder / "run/csv").iterdir()) == ["version_0", "version_1"]
    assert not (folder / "run/previous").exists()
    saved = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert saved["model"]["init_args"]["loss"]["init_args"]["scale"] == 0.25
    assert "step 6 of 6" in capsys.readouterr().out


def test_a_start_that_fails_leaves_the_earlier_run_where_it_was(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", "c.yaml"])
    files = sorted(str(path) for path in (folder / "run").rglob("*"))
    capsys.readouterr()
    assert main(["fit", "--config", "c.yaml", "--data.train", "none.jsonl"]) == 1
    assert "none.jsonl" in capsys.readouterr().err
    assert sorted(str(path) for path in (folder / "run").rglob("*")) == files


def test_a_bad_row_is_one_message_and_debug_shows_the_rest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "Give fact 17.", "candidates": 3}\n')
    assert main(["fit", "--config", "c.yaml"]) == 1
    error = capsys.readouterr().err
    assert "rows.jsonl" in error and "17" in error and "Traceback" not in error
    with pytest.raises(ValueError, match=r"rows\.jsonl"):
        main(["fit", "--config", "c.yaml", "--debug"])


@pytest.mark.parametrize("fault", ["{}[text]", "int('one')"])
def test_a_fault_in_the_users_own_code_keeps_its_traceback_with_the_row(folder: Path, fault: str) -> None:
    (folder / "mine.py").write_text(MINE.replace("len(set(text))", fault))
    with pytest.raises((KeyError, ValueError)) as raised:
        main(["fit", "--config", "c.yaml"])
    assert raised.traceback[-1].path == folder / "mine.py"
    (note,) = raised.value.__notes__
    assert "rule:mine.variety on rows.jsonl, row " in note


def test_a_fault_in_the_users_own_judge_names_it_and_its_prompt(folder: Path) -> None:
    (folder / "mine.py").write_text(
        MINE + "\nfrom lit_align.judges import PointwiseJudge\n"
        "class Mine(PointwiseJudge):\n    identity = 'mine'\n"
        "    def score(self, sets):\n        raise ValueError('no idea')\n"
    )
    words = ["--data.judge", "mine.Mine"]
    with pytest.raises(ValueError, match="no idea") as raised:
        main(["fit", "--config", "c.yaml", *words])
    assert raised.traceback[-1].path == folder / "mine.py"
    assert "Mine on the prompt 'Give fact " in raised.value.__notes__[0]


def test_a_cpu_that_was_not_asked_for_is_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "c.yaml", "--trainer.max_steps", "1"]) == 0
    assert "GPU" not in capsys.readouterr().out
    assert main(["fit", "--config", "c.yaml", "--trainer.max_steps", "1", "--trainer.accelerator", "auto"]) == 0
    assert capsys.readouterr().out.count("No GPU was found: this runs on the CPU") == 1


def test_an_interruption_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(
        MINE
        + "\nimport os, signal\nfrom lightning.pytorch import Callback\n"
        + "class Interrupt(Callback):\n"
        + "    def on_train_batch_end(self, trainer, *_):\n"
        + "        if trainer.global_step == 3:\n            os.kill(os.getpid(), signal.SIGINT)\n"
    )
    config = (folder / "c.yaml").read_text()
    extra = (
        "    - class_path: mine.Interrupt\n"
        "    - class_path: AlignmentCheckpoint\n      init_args: {every_n_train_steps: 2}\n"
    )
    (folder / "c.yaml").write_text(config.replace("model:\n  class_path", extra + "model:\n  class_path", 1))
    assert main(["fit", "--config", "c.yaml"]) == 130
    out = capsys.readouterr().out
    assert "Stopped at step 3. The last checkpoint of step 3 is" in out
    assert "--ckpt_path last" in out


def test_a_run_that_a_scheduler_ends_is_saved_and_does_not_say_it_is_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.py").write_text(
        MINE
        + "\nimport os, signal\nfrom lightning.pytorch import Callback\n"
        + "class Terminate(Callback):\n"
        + "    def on_train_batch_end(self, trainer, *_):\n"
        + "        if trainer.global_step == 2:\n            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    args = ["--trainer.callbacks+=mine.Terminate", "--boundary", "null"]
    assert main(["fit", "--config", "c.yaml", *args]) == 143
    assert "Stopped at step 2. The last checkpoint of step 2 is" in capsys.readouterr().out
    assert main(["fit", "--config", "c.yaml", "--boundary", "null", "--ckpt_path", "last"]) == 0


def test_without_a_boundary_it_is_plain_off_policy_training(folder: Path) -> None:
    args = ["--boundary", "null", "--model.loss", "DPO", "--trainer.max_steps", "1"]
    assert main(["fit", "--config", "c.yaml", *args]) == 0
    assert not (folder / "run/boundary.jsonl").exists()
    assert "not measured" in json.loads((folder / "run/summary.json").read_text())["crossing"]["text"]


def test_validate_and_predict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", "c.yaml"])
    capsys.readouterr()
    assert main(["validate", "--config", "c.yaml", "--ckpt_path", "last"]) == 0
    shown = capsys.readouterr().out
    for name in ("val/loss", "val/rewards/accuracies", "val/rewards/margins"):
        assert name in shown
    assert main(["predict", "--config", "c.yaml"]) == 0
    rows = jsonl(folder / "run/predictions.jsonl")
    apart = jsonl(folder / "run/predictions_dropped.jsonl")
    assert len(rows) == len(apart) == 2 and {*apart[0]["dropped"]} == {"kept_to_measure_the_boundary"}
    assert all(row["margins"] == pytest.approx(row["chosen_rewards"] - row["rejected_rewards"]) for row in rows)
    assert (folder / "run/boundary.jsonl").exists(), "only a fit puts a run aside"


def test_predictions_say_which_row_they_are_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long, tied = [{"text": "tea " * 300, "score": 1}, "sea"], [{"text": "a", "score": 1}, {"text": "b", "score": 1}]
    sets = [["noon", "sea"], long, tied, ["one", "three"]]
    rows = [{"prompt": f"Fact {n}?", "candidates": answers, "prompt_id": f"p{n}"} for n, answers in enumerate(sets)]
    (folder / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data.val", "val.jsonl", "--data.val_fraction", "0", "--data.boundary_fraction", "0"]
    assert main(["predict", "--config", "c.yaml", *words]) == 0
    kept, dropped = (jsonl(folder / "run" / name) for name in ("predictions.jsonl", "predictions_dropped.jsonl"))
    assert [(row["id"], row["index"], row["prompt"]) for row in kept] == [("p0", 0, "Fact 0?"), ("p3", 3, "Fact 3?")]
    assert [row["where"] for row in kept] == ["val.jsonl, row 1", "val.jsonl, row 4"]
    assert all(row["margins"] == pytest.approx(row["chosen_rewards"] - row["rejected_rewards"]) for row in kept)
    assert [(row["id"], row["dropped"]) for row in dropped] == [("p1", ["completion_too_long"]), ("p2", ["ties"])]
    assert "2 held-out rows without them are in run/predictions_dropped.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "limit"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_a_command_that_would_take_no_pairs_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, limit: str
) -> None:
    assert main([command, "--config", "c.yaml", f"--trainer.limit_{limit}_batches", "0"]) == 2
    assert f"--trainer.limit_{limit}_batches 1.0 takes all of them" in capsys.readouterr().err


def test_measure_needs_no_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "--config", "c.yaml", "--output", "o.json", "--max_prompts", "2"]) == 0
    found = json.loads((folder / "o.json").read_text())
    assert set(found) >= {
        "stage", "on_policy_share", "score", "low", "high", "prompts", "votes_on", "votes_off", "ties", "abstentions",
        "seconds", "reason",
    }  # fmt: skip
    assert found["prompts"] == 2
    assert found["votes_on"] + found["votes_off"] + found["ties"] == 2 * 2 * 3
    assert "Boundary score" in capsys.readouterr().out


def test_precompute_fills_what_fit_then_finds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--config", "c.yaml", "--model.loss", "DPO", "--data.reference_cache", "stored"]
    assert main(["precompute", *args]) == 0
    out = capsys.readouterr().out
    assert "0 of 14 static pairs found" in out and "computed 14 pairs in" in out
    (store,) = Path("stored").iterdir()
    assert (store / "manifest.json").exists() and not Path("run/config.yaml").exists()
    assert main(["precompute", *args]) == 0
    out = capsys.readouterr().out
    assert "all 14 static pairs found" in out and "computed" not in out
    files = sorted(store.iterdir())
    assert main(["fit", *args, "--model.loss.beta", "0.3", "--seed_everything", "1"]) == 0
    assert "static pairs found" in capsys.readouterr().out and sorted(store.iterdir()) == files


def test_precompute_says_why_there_is_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["precompute", "--config", "c.yaml"]) == 1  # the config's own loss has no reference
    assert "the loss needs no reference" in capsys.readouterr().err


def test_measure_from_two_files_of_recorded_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(path: Path, sets: dict[str, list[float]]) -> Path:
        rows = [
            {"prompt": prompt, "candidates": [{"text": f"{n}", "score": score} for n, score in enumerate(scores)]}
            for prompt, scores in sets.items()
        ]
        with gzip.open(path, "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        return path

    # a: 3 of 4 votes and a tie: (2 + 0.5 + 1) / 4 = 0.875?  2>1, 2=2 -> 1.5; 3>1, 3>2 -> 2: 3.5 of 4.
    # b: one vote, lost. The mean over prompts is (3.5 / 4 + 0) / 2.
    on = write(tmp_path / "on.jsonl.gz", {"b": [0.0], "a": [2.0, 3.0]})
    off = write(tmp_path / "off.jsonl.gz", {"a": [1.0, 2.0], "b": [5.0], "elsewhere": [1.0]})
    output = tmp_path / "o.json"
    assert main(["measure", "--on_policy", str(on), f"--off_policy={off}", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["score"] == pytest.approx(0.4375)
    assert (found["votes_on"], found["votes_off"], found["ties"], found["prompts"]) == (3, 1, 1, 2)
    assert (found["stage"], found["on_policy_share"]) == ("injection", 0.0)
    assert "0.438" in capsys.readouterr().out
    assert main(["measure", "--on_policy", str(tmp_path / "none"), "--off_policy", str(off)]) == 1
    assert "none" in capsys.readouterr().err


def test_init_copies_configs_and_schedules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "work")]) == 0
    expected = {
        str(path.relative_to(ROOT))
        for part in ("configs", "callbacks")
        for path in (ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    copied = {str(path.relative_to(tmp_path / "work")) for path in (tmp_path / "work").rglob("*") if path.is_file()}
    assert copied == expected and copied
    first = tmp_path / "work" / sorted(copied)[0]
    first.write_text("changed by the user")
    assert main(["init", str(tmp_path / "work")]) == 1
    assert "--force" in capsys.readouterr().err
    assert first.read_text() == "changed by the user"
    copy_user_files(tmp_path / "work", force=True)
    assert first.read_text() != "changed by the user"
    assert user_files() == ROOT


def test_a_wheel_carries_what_init_copies(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="builds a wheel with hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {"lit_align"}
    code = "import sys; from lit_align.cli import main; sys.exit(main(['init', 'work']))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)
    for part in ("configs", "callbacks"):
        mine = {p.relative_to(ROOT) for p in (ROOT / part).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert mine == {p.relative_to(tmp_path / "work") for p in (tmp_path / "work" / part).rglob("*") if p.is_file()}
