"""Unknown keys and wrong values: refused in one short message that names the nearest known key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_align.cli import main
from lit_align.cli.keys import prefer_torch

GOOD = "model:\n  init_args:\n    policy: {model: nowhere}\ndata:\n  init_args: {train: nowhere.jsonl}\n"


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(list(args)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 2, error
    return error.splitlines()[0]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("trianer: {max_steps: 3}", "unknown key `trianer` in {file}: did you mean `trainer`?"),
        ("modle:", "unknown key `modle` in {file}: did you mean `model`?"),
        ("trainer: {max_step: 3}", "unknown key `trainer.max_step` in {file}: did you mean `trainer.max_steps`?"),
        (
            "data: {init_args: {batchsize: 3}}",
            "unknown key `data.init_args.batchsize` in {file}: did you mean `data.init_args.batch_size`?",
        ),
        (
            "model: {init_args: {policy: {model: x, lora: {rank: 3}}}}",
            "unknown key `model.init_args.policy.lora.rank` in {file}: known here: alpha, dora, dropout, init, "
            "modules_to_save, r, rslora, target_modules, target_parameters",
        ),
        (
            "model: {init_args: {optimizer: {class_path: torch.optim.AdamW, init_args: {lrr: 1}}}}",
            "unknown key `model.init_args.optimizer.init_args.lrr` in {file}: "
            "did you mean `model.init_args.optimizer.init_args.lr`?",
        ),
        (
            "model: {init_args: {loss: {class_path: DPOO}}}",
            "unknown class `DPOO` for `model.init_args.loss` in {file}: did you mean `DPO`?",
        ),
        (
            "boundary: {class_path: BoundaryCallback, init_args: {every_n_step: 3}}",
            "unknown key `boundary.init_args.every_n_step` in {file}: did you mean `boundary.init_args.every_n_steps`?",
        ),
        (
            "trainer: {callbacks: [{class_path: WinRateCallback, init_args: {num_promts: 3}}]}",
            "unknown key `trainer.callbacks.0.init_args.num_promts` in {file}: "
            "did you mean `trainer.callbacks.0.init_args.num_prompts`?",
        ),
        ("data: {init_args: {seed: 3}}", "`data.seed` follows `seed_everything`: set that one"),
    ],
)
def test_unknown_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], yaml: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml)
    assert refused(capsys, "fit", "--config", str(file)) == "error: " + message.format(file=file)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.loss.bta=1", "unknown key `model.loss.bta` in the command line: did you mean `model.loss.beta`?"),
        ("--data.batchsize=1", "unknown key `data.batchsize` in the command line: did you mean `data.batch_size`?"),
        (
            "--trainer.maxsteps=1",
            "unknown key `trainer.maxsteps` in the command line: did you mean `trainer.max_steps`?",
        ),
        ("--ckptpath=last", "unknown key `ckptpath` in the command line: did you mean `ckpt_path`?"),
        ("--model.loss.beta=abc", "`model.loss.beta` in the command line: expected a finite number, got 'abc'"),
        ("--trainer.max_steps=abc", "`trainer.max_steps`: expected int. Got value: abc"),
        ("--trainer.accumulate_grad_batches=x", "`trainer.accumulate_grad_batches`: expected int. Got value: x"),
        ("--trainer.barebones=x", "`trainer.barebones`: expected bool. Got value: x"),
    ],
)
def test_unknown_or_wrong_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    assert refused(capsys, "fit", "--config", str(tmp_path / "c.yaml"), option) == f"error: {message}"


def test_a_loss_chosen_on_the_command_line_brings_its_own_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    args = ["fit", "--config", str(tmp_path / "c.yaml"), "--model.loss", "SLiCHF"]
    with pytest.raises(SystemExit) as done:
        main([*args, "--model.loss.delta", "2", "--print_config"])
    assert done.value.code == 0
    assert "delta: 2.0" in capsys.readouterr().out
    assert "model.loss.beta" in refused(capsys, *args, "--model.loss.beta", "2")


def printed_trainer(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """The trainer's section of `--print_config`, its objects as (class, arguments that are not null)."""
    with pytest.raises(SystemExit) as done:
        main([*args, "--print_config"])
    out = capsys.readouterr()
    assert done.value.code == 0, out.err
    return dict(yaml.safe_load(out.out)["trainer"])


def named(value: Any) -> tuple[str, dict[str, Any]]:
    return value["class_path"].rsplit(".", 1)[1], value.get("init_args", {})


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"],
        ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.init_args.monitor", "val/loss"],
        ["--trainer.callbacks+", '{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}'],
    ],
)
def test_callbacks_are_added_and_set_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    callbacks = "trainer: {callbacks: [{class_path: WinRateCallback, init_args: {num_prompts: 3}}]}\n"
    (tmp_path / "c.yaml").write_text(GOOD + callbacks)
    more = ["--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.logging_interval=step"]
    trainer = printed_trainer(capsys, "fit", "--config", str(tmp_path / "c.yaml"), *words, *more)
    (first, arguments), (second, stopping), (third, monitor) = map(named, trainer["callbacks"])
    assert (first, second, third) == ("WinRateCallback", "EarlyStopping", "LearningRateMonitor")
    assert (arguments["num_prompts"], stopping["monitor"], monitor["logging_interval"]) == (3, "val/loss", "step")


def test_a_config_adds_to_the_callbacks_of_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(GOOD + "trainer: {callbacks: [LearningRateMonitor]}\n")
    (tmp_path / "d.yaml").write_text(
        "trainer: {callbacks+: [{class_path: EarlyStopping, init_args: {monitor: loss}}]}\n"
    )
    configs = ["--config", str(tmp_path / "c.yaml"), "--config", str(tmp_path / "d.yaml")]
    trainer = printed_trainer(capsys, "fit", *configs, "--trainer.callbacks.patience=7")
    (first, _), (second, stopping) = map(named, trainer["callbacks"])
    assert (first, second, stopping["patience"]) == ("LearningRateMonitor", "EarlyStopping", 7)


def test_loggers_strategies_and_profilers_take_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    start = ["fit", "--config", str(tmp_path / "c.yaml")]
    words = [
        "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs",
        "--trainer.logger+=TensorBoardLogger", "--trainer.logger.save_dir=boards",
        "--trainer.strategy=DDPStrategy", "--trainer.strategy.find_unused_parameters=true",
        "--trainer.profiler=AdvancedProfiler", "--trainer.profiler.dump_stats=true",
    ]  # fmt: skip
    trainer = printed_trainer(capsys, *start, *words)
    (first, csv), (second, boards) = map(named, trainer["logger"])
    assert (first, csv["save_dir"], second, boards["save_dir"]) == ("CSVLogger", "logs", "TensorBoardLogger", "boards")
    assert named(trainer["strategy"])[1]["find_unused_parameters"] is True
    assert named(trainer["profiler"])[1]["dump_stats"] is True
    (tmp_path / "time.yaml").write_text("trainer: {max_time: {hours: 2}}")
    start += ["--config", str(tmp_path / "time.yaml")]
    (tmp_path / "class.yaml").write_text("trainer: {strategy: {class_path: lit_align.ShardedStrategy}}")
    trainer = printed_trainer(capsys, *start, "--config", str(tmp_path / "class.yaml"))
    assert named(trainer["strategy"])[0] == "ShardedStrategy", "in a file, on top of the default, which is a text"
    trainer = printed_trainer(capsys, *start, "--trainer.strategy=ddp", "--trainer.profiler=simple")
    assert trainer["max_time"] == {"hours": 2}
    assert (trainer["strategy"], trainer["profiler"]) == ("ddp", "simple")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--trainer.callbacks+=EarlyStoping"],
            "unknown class `EarlyStoping` for `trainer.callbacks` in the command line: did you mean `EarlyStopping`?",
        ),
        (
            ["--trainer.logger=CSVLoger"],
            "unknown class `CSVLoger` for `trainer.logger` in the command line: did you mean `CSVLogger`?",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitr=loss"],
            "unknown key `trainer.callbacks.monitr` in the command line: did you mean `trainer.callbacks.monitor`?",
        ),
        (
            ["--trainer.logger=CSVLogger", "--trainer.logger.save_dr=x"],
            "unknown key `trainer.logger.save_dr` in the command line: did you mean `trainer.logger.save_dir`?",
        ),
        (
            ["--trainer.callbacks.monitor=loss"],
            "`trainer.callbacks.monitor` in the command line comes before the class that it belongs to: name that one "
            "first, such as --trainer.callbacks=NAME --trainer.callbacks.monitor=VALUE (+=NAME adds to a list)",
        ),
        (["--trainer.precision=fp8"], "`trainer.precision`: expected one of 'transformer-engine',"),
    ],
)
def test_wrong_names_among_callbacks_and_loggers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    assert refused(capsys, "fit", "--config", str(tmp_path / "c.yaml"), *words).startswith(f"error: {message}")


def test_a_number_that_yaml_takes_for_text_is_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", str(tmp_path / "c.yaml"), "--model.optimizer.lr", "6e-4", "--print_config"])
    assert done.value.code == 0
    assert "lr: 0.0006" in capsys.readouterr().out


def test_null_on_the_command_line_takes_back_what_a_config_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("model: {policy: {model: M, quantization: nf4, lora: {r: 3}}}\n")
    options = ["--model.policy.lora", "null", "--model.policy.quantization=null", "--model.reference", "null"]
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", str(tmp_path / "c.yaml"), *options, "--print_config"])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert "lora: null" in printed and "quantization: null" in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.batch_size=0", "batch_size"),
        ("--data.judge.init_args.rule=no_such_module.rule", "no rule at 'no_such_module.rule'"),
        ("--model.loss.beta=-1", "beta"),
    ],
)
def test_what_a_class_refuses_is_one_short_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    judge = ["--data.train", "rows.jsonl", "--data.judge", "RuleJudge", "--data.judge.init_args.rule", "math.dist"]
    assert main(["fit", "--config", str(tmp_path / "c.yaml"), *judge, option]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 2, error
    assert "Namespace" not in error and "Union" not in error


def test_ctrl_c_ends_with_130_also_where_lightning_says_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: list[str]) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr("lit_align.cli.entry._dispatch", interrupted)
    assert main(["fit"]) == 130


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refused(capsys, "fit", "--config", str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    assert "should hold keys and values, but holds a list" in refused(
        capsys, "fit", "--config", str(tmp_path / "list.yaml")
    )


def test_a_missing_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "policy.model" in refused(capsys, "fit")


@pytest.mark.parametrize("optimizer", ["AdamW", "{class_path: AdamW, init_args: {lr: 0.5}}"])
@pytest.mark.parametrize("model", ["{ARGS}", "{class_path: AlignmentModule, init_args: {ARGS}}"])
def test_the_bare_name_of_an_optimizer_is_torchs_in_a_config_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, optimizer: str
) -> None:
    import bitsandbytes  # noqa: F401  # has an AdamW, too

    config = tmp_path / "c.yaml"
    arguments = f"policy: {{model: m}}, optimizer: {optimizer}"
    config.write_text(f"model: {model.replace('ARGS', arguments)}\ndata: {{train: rows.jsonl}}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]
    assert shown["class_path"] == "torch.optim.AdamW"
    assert shown["init_args"]["lr"] == (0.5 if "lr" in optimizer else 1e-5)


def test_the_bare_name_of_an_optimizer_is_torchs() -> None:
    words = ["fit", "--model.optimizer", "AdamW", "--model.optimizer=SGD", "--model.optimizer", "mine.AdamW"]
    torchs = ["torch.optim.AdamW", "--model.optimizer=torch.optim.SGD", "--model.optimizer", "mine.AdamW"]
    assert prefer_torch(words) == [*words[:2], *torchs]
