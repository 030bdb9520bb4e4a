"""The parser of a command that reads a run's data and loads no policy by its config."""

from __future__ import annotations

from argparse import SUPPRESS
from typing import Any

from jsonargparse import ActionConfigFile

from lit_align.cli.parser import Parser, read_seed, shorten
from lit_align.data import AlignmentDataModule

_OTHERS = ("model", "trainer", "boundary", "ckpt_path")


def data_parser(prog: str, description: str, with_data: bool = True) -> Parser:
    """A parser that takes a run's whole config, of which only the data and the seed are used.

    Args:
        prog: the command.
        description: of the command.
        with_data: whether there is a config at all.
    """
    parser = Parser(prog=prog, description=description)
    if not with_data:
        return parser
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; may be given several times")
    parser.add_argument(
        "--seed_everything", type=read_seed, default=0, help="the run's seed: splits, selects and draws"
    )
    parser.add_lightning_class_args(AlignmentDataModule, "data", subclass_mode=True)
    parser.set_defaults({"data": {"class_path": "lit_align.data.AlignmentDataModule"}})
    for section in _OTHERS:
        parser.add_argument(f"--{section}", type=Any, default=None, help=SUPPRESS)
    return parser


def instantiate(parser: Parser, config: Any) -> Any:
    """Makes the objects of a parsed config; of sections that are not used nothing is made.

    Raises:
        ValueError: a class refuses its arguments, in a message that can be read.
    """
    for section in _OTHERS:
        config.pop(section, None)
    try:
        return parser.instantiate(config)
    except ValueError as error:
        raise ValueError(shorten(str(error)) if "Does not validate" in str(error) else str(error)) from error
