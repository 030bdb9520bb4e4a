"""Two examples for the end of each command's help, and the parser of those that bring theirs."""

from __future__ import annotations

import argparse
import textwrap

_QUICKSTART = "--config configs/quickstart.yaml"
_COLUMNS = 79
_OWN = "--config configs/own_data.yaml --data.train my_pairs.jsonl"

EXAMPLES: dict[str, tuple[str, str]] = {
    "init": ("lit-align init my-alignment", "lit-align init . --force"),
    "plan": (
        f"lit-align plan {_QUICKSTART}",
        f"lit-align plan {_OWN} --card_gib 12",
    ),
    "preview": (
        f"lit-align preview {_QUICKSTART} --rows 3",
        f"lit-align preview {_OWN}",
    ),
    "precompute": (
        f"lit-align precompute {_QUICKSTART}",
        f"lit-align precompute {_OWN}",
    ),
    "fit": (
        f"lit-align fit {_OWN}",
        f"lit-align fit {_QUICKSTART} --model.loss.beta 0.2 --ckpt_path last",
    ),
    "validate": (
        f"lit-align validate {_OWN}",
        f"lit-align validate {_OWN} --ckpt_path last",
    ),
    "test": (
        f"lit-align test {_OWN}",
        f"lit-align test {_OWN} --ckpt_path last",
    ),
    "predict": (
        f"lit-align predict {_OWN}",
        f"lit-align predict {_OWN} --ckpt_path last",
    ),
    "evaluate": (
        "lit-align evaluate --run runs/quickstart",
        "lit-align evaluate --run runs/second --against runs/first --judge PairRM",
    ),
    "measure": (
        f"lit-align measure {_QUICKSTART} --output stage.json",
        "lit-align measure --on_policy mine.jsonl --off_policy theirs.jsonl",
    ),
    "judge": (
        "lit-align judge --config configs/judge.yaml",
        f"lit-align judge {_OWN} --held_out true",
    ),
}


def text(command: str) -> str:
    """The examples of a command as lines; empty where its own help has them."""
    lines = [f"  {example}" for example in EXAMPLES.get(command, ())]
    return "\n".join(["", "examples:", *lines]) if lines else ""


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
