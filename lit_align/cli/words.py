"""Arguments that several commands on a finished run have."""

from __future__ import annotations

import argparse
import sys
import textwrap
from contextlib import redirect_stdout

from lit_align.trained import TrainedPolicy, TrainedRun, open_run

_COLUMNS = 79


def command_parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A command's parser, whose help fits 80 columns and ends with the examples as they are.

    Args:
        command: its name.
        description: what it does, in one paragraph.
        examples: lines.
    """
    return argparse.ArgumentParser(
        prog=f"lit-align {command}",
        description=textwrap.fill(description, _COLUMNS),
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the run, and how it is loaded."""
    parser.add_argument(
        "run", metavar="RUN", help="a run folder (runs/NAME or NAME), a checkpoint, or a model folder of a run"
    )
    parser.add_argument("--base", metavar="MODEL", help="the base to load, if it has moved since")
    parser.add_argument("--device", help="where to compute, such as cpu; the GPU by default, if there is one")


def add_switch(parser: argparse.ArgumentParser, name: str, default: bool, text: str) -> None:
    """Adds a switch that takes true or false, and means true if it is given alone."""
    parser.add_argument(name, nargs="?", const=True, default=default, type=read_bool, metavar="true|false", help=text)


def read_bool(word: str) -> bool:
    """Reads true or false.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {word!r}")
    return word.lower() == "true"


def open_quietly(parsed: argparse.Namespace) -> tuple[TrainedRun, TrainedPolicy]:
    """Opens and loads the run that :func:`add_run` names; see :func:`load_quietly`."""
    opened = open_run(parsed.run, parsed.base)
    return opened, load_quietly(opened, parsed.device)


def load_quietly(opened: TrainedRun, device: str | None) -> TrainedPolicy:
    """Loads a run's policy; what is said meanwhile goes to standard error."""
    with redirect_stdout(sys.stderr):
        return opened.load(device)
