"""The text of `lit-align --help`, printed without loading anything."""

from __future__ import annotations

import difflib

COMMANDS = {
    "init": "copy configs and schedules into a folder, to start from",
    "doctor": "check on this machine that all is right and fast",
    "plan": "tell what a fit needs of memory, before anything is loaded",
    "preview": "show rows as the model gets them, and which tokens are trained",
    "measure": "tell which of the two stages a model is in, without training it",
    "precompute": "store the reference's log-probs of static pairs ahead of a fit",
    "fit": "train a policy that measures its stage, or a reward model",
    "report": "write what happened in a run, or in several, as one HTML page",
    "evaluate": "compare a trained model with its start or another, by a judge",
    "chat": "talk to a trained model, and to the one it started from",
    "sample": "answer a file of prompts with a trained model",
    "export": "write the trained model for transformers and peft to load",
    "validate": "run the held-out pairs through a model or checkpoint",
    "test": "the same, logged as test",
    "predict": "write the rewards of the held-out pairs",
    "judge": "tell how good a judge is, on labelled pairs",
    "completion": "print a script that completes commands and options",
}

GROUPS = {
    "init": "to begin",
    "plan": "before a run",
    "fit": "the run",
    "report": "after a run",
    "validate": "on held-out pairs",
    "judge": "the judge",
    "completion": "in your shell",
}
"""The heading above a command."""

_TEXT = """\
usage: lit-align COMMAND --config FILE [--config FILE ...] [--KEY VALUE ...]

Preference alignment that measures its stage while it trains.

{commands}

A first run, in a folder of its own:
  lit-align init my-alignment && cd my-alignment
  lit-align fit --config configs/quickstart.yaml

A run is a YAML file. Any of its keys can be given on the command line, and of
a key that is given twice the later one counts:
  lit-align fit --config configs/quickstart.yaml --model.loss.beta 0.2
Add
  --ckpt_path last      to go on where a run stopped
  --print_config        to see what would run, with all defaults

  lit-align COMMAND --help              the options of a command, and examples
  lit-align fit --model.loss.help DPO   the arguments of a class
  --debug                               where an error came from, in full
  --version                             the version
  LIT_ALIGN_PROGRESS=plain              lines, not bars (auto, bar, plain, off)
"""


def text() -> str:
    """The text that `lit-align --help` prints."""
    width = max(map(len, COMMANDS))
    lines: list[str] = []
    for name, what in COMMANDS.items():
        if name in GROUPS:
            lines += ["", f"{GROUPS[name]}:"] if lines else [f"{GROUPS[name]}:"]
        lines.append(f"  {name:<{width}}  {what}")
    return _TEXT.format(commands="\n".join(lines))


def unknown(word: str) -> str:
    """The error message for a command that does not exist."""
    nearest = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean `{nearest[0]}`?" if nearest else f"known: {', '.join(COMMANDS)}"
    return f"unknown command `{word}`: {hint}"
