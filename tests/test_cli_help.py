"""What `lit-align --help` and `lit-align COMMAND --help` say."""

from __future__ import annotations

import pytest

from lit_align.cli import main
from lit_align.cli.help import COMMANDS


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
