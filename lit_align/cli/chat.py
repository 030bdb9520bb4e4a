"""`lit-align chat`: a chat with a trained model in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lit_align.cli.examples import command_parser
from lit_align.cli.words import add_run, open_quietly
from lit_align.policy.spec import PolicySpec
from lit_align.talk import Chat, ChatSettings
from lit_align.talk.terminal import run_chat
from lit_align.trained.loading import short_name

EXAMPLES = """\
examples:
  lit-align chat runs/quickstart
  echo "Tell me something about tea." | lit-align chat runs/quickstart --temperature 0
"""


def run(args: Sequence[str]) -> None:
    """Parses the arguments of `chat`, loads the model and talks."""
    parsed = build_parser().parse_args(list(args))
    settings = ChatSettings(parsed.system, parsed.temperature, parsed.top_p, parsed.max_new_tokens, parsed.seed)
    opened, policy = open_quietly(parsed)
    run_chat(Chat(policy, settings), _title(opened.name, policy.spec), sys.stdin, sys.stdout)


def _title(name: str, spec: PolicySpec) -> str:
    base = short_name(spec.model)
    return f"{name}, trained from {base}" if base != name else name


def build_parser() -> argparse.ArgumentParser:
    """The options of `lit-align chat`."""
    parser = command_parser(
        "chat",
        "A chat with a trained model. /base switches to the model that the run started from and back, "
        "/again repeats the last question, /reset forgets the chat. Reads from a pipe, too: one question a line.",
        EXAMPLES,
    )
    default = ChatSettings()
    add_run(parser)
    parser.add_argument("--system", help="the system turn")
    parser.add_argument("--temperature", type=float, default=default.temperature, help="0 is greedy; default 0.7")
    parser.add_argument("--top_p", type=float, default=default.top_p, help="share of the likeliest tokens; 0.95")
    parser.add_argument("--max_new_tokens", type=int, default=default.max_new_tokens, help="longest answer; 512")
    parser.add_argument("--seed", type=int, default=default.seed, help="decides what is drawn; default 0")
    return parser
