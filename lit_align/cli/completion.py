"""`lit-align completion SHELL`: a script that completes commands and options in bash, zsh or fish."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from itertools import chain
from typing import Any

from lit_align.cli.examples import command_parser
from lit_align.cli.help import COMMANDS

_OPTION = re.compile(r"^  (?:-\w, )?(--[\w.-]+)", flags=re.MULTILINE)
_EPILOG = """\
examples:
  bash  lit-align completion bash > ~/.local/share/bash-completion/completions/lit-align
  zsh   lit-align completion zsh > DIR/_lit-align     # DIR is one of those in $fpath
  fish  lit-align completion fish > ~/.config/fish/completions/lit-align.fish
They write the script where the shell looks for it; the next shell completes."""


def run(args: Sequence[str], main: Callable[[Sequence[str]], int]) -> None:
    """Parses the arguments of `completion` and prints the script.

    Args:
        args: the words after the command.
        main: the command line itself, which is asked for the help of each command.
    """
    parser = command_parser(
        "completion",
        "Prints a script that completes commands, options and file names in a shell.",
        _EPILOG,
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS))
    shell = parser.parse_args(list(args)).shell
    options = options_of_fits()
    for command in COMMANDS:
        if command not in options:
            options[command] = options_of_help(command, main)
    print(SCRIPTS[shell]({command: options[command] for command in COMMANDS}), end="")


def options_of_fits() -> dict[str, list[str]]:
    """The options of each command that takes a whole run, those of a run's parts included."""
    from lit_align.cli.app import AlignmentCLI

    options: dict[str, list[str]] = {}

    class Parsers(AlignmentCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            for command, of_command in self._subcommand_parsers.items():
                names = chain.from_iterable(action.option_strings for action in of_command._actions)
                options[command] = [name for name in names if name.startswith("--")]
            raise SystemExit

    with suppress(SystemExit):
        Parsers([])
    parts = list(_options_of_parts())
    for command, names in options.items():
        options[command] = list(dict.fromkeys([*names, *parts]))
    return options


def options_of_help(command: str, main: Callable[[Sequence[str]], int]) -> list[str]:
    """The options that a command's help lists."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        main([command, "--help"])
    return list(dict.fromkeys(_OPTION.findall(text.getvalue())))


def _options_of_parts() -> Iterator[str]:
    import lit_align as la
    from lit_align.cli.keys import parameters_of

    parts = {
        "data": la.AlignmentDataModule,
        "model": la.AlignmentModule,
        "model.policy": la.PolicySpec,
        "model.policy.lora": la.LoraSpec,
        "boundary": la.BoundaryCallback,
    }
    for name, part in parts.items():
        yield from (f"--{name}.{parameter}" for parameter in parameters_of(part))


def _for_bash(options: Mapping[str, Sequence[str]]) -> str:
    cases = "\n".join(f'    {command}) words="{" ".join(names)}" ;;' for command, names in options.items())
    return f"""\
# Completion of lit-align for bash.
_lit_align() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(options)} --help --version" -- "$current"))
    return
  fi
  case "$current" in -*) ;; *) return ;; esac
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _lit_align lit-align
"""


def _for_zsh(options: Mapping[str, Sequence[str]]) -> str:
    commands = "\n".join(f"      {_quote(f'{command}:{COMMANDS[command]}')}" for command in options)
    cases = "\n".join(f"      {command}) compadd -- {' '.join(names)} ;;" for command, names in options.items())
    return f"""\
#compdef lit-align
# Completion of lit-align for zsh.
_lit_align() {{
  if (( CURRENT == 2 )); then
    local -a commands
    commands=(
{commands}
    )
    _describe command commands
  elif [[ "$words[CURRENT]" == -* ]]; then
    case "$words[2]" in
{cases}
    esac
  else
    _files
  fi
}}
if [ "$funcstack[1]" = "_lit-align" ]; then _lit_align "$@"; else compdef _lit_align lit-align; fi
"""


def _for_fish(options: Mapping[str, Sequence[str]]) -> str:
    lines = ["# Completion of lit-align for fish."]
    for command, names in options.items():
        about = _quote(COMMANDS[command])
        lines.append(f"complete -c lit-align -f -n __fish_use_subcommand -a {command} -d {about}")
        condition = f"'__fish_seen_subcommand_from {command}'"
        lines += [f"complete -c lit-align -n {condition} -l {name.removeprefix('--')}" for name in names]
    return "\n".join([*lines, ""])


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


SCRIPTS: dict[str, Callable[[Mapping[str, Sequence[str]]], str]] = {
    "bash": _for_bash,
    "zsh": _for_zsh,
    "fish": _for_fish,
}
