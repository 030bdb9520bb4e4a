"""Arguments that several commands on a finished run have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch

from lit_align.export.folder import without_bars
from lit_align.trained import TrainedPolicy, TrainedRun, open_run


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the run, and how it is loaded."""
    parser.add_argument(
        "run", metavar="RUN", help="a run folder (runs/NAME or NAME), a checkpoint, or a model folder of a run"
    )
    parser.add_argument("--base", metavar="MODEL", help="the base to load, if it has moved since")
    parser.add_argument(
        "--device", type=read_device, help="where to compute, such as cpu; the GPU by default, if there is one"
    )


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


def read_device(word: str) -> str:
    """Reads a device that torch can compute on here.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        torch.empty(0, device=word)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"expected a device of this machine, such as cpu, got {word!r}") from error
    return word


@contextmanager
def hints_at_base(base: str | None) -> Iterator[None]:
    """Says at an error about a base that is not there that another place can be named.

    Args:
        base: the place that the user named; None if the run's own counts.
    """
    try:
        yield
    except FileNotFoundError as error:
        if base is None:
            error.add_note("If the base has moved since the fit, --base names its place now.")
        raise


def open_quietly(parsed: argparse.Namespace) -> tuple[TrainedRun, TrainedPolicy]:
    """Opens and loads the run that :func:`add_run` names; see :func:`load_quietly`."""
    opened = open_run(parsed.run, parsed.base)
    return opened, load_quietly(opened, parsed)


def load_quietly(opened: TrainedRun, parsed: argparse.Namespace) -> TrainedPolicy:
    """Loads a run's policy without bars; what is said meanwhile goes to standard error."""
    with redirect_stdout(sys.stderr), without_bars(), hints_at_base(parsed.base):
        return opened.load(parsed.device)
