"""`lit-align export`: the trained model as a folder for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lit_align.cli.errors import UsageError
from lit_align.cli.examples import command_parser
from lit_align.cli.words import add_run, add_switch, hints_at_base
from lit_align.console import note
from lit_align.export.hub import demand_token, push
from lit_align.export.run import Export, export_run
from lit_align.trained import open_run
from lit_align.trained.loading import loading_lines

EXAMPLES = """\
examples:
  lit-align export runs/quickstart --output quickstart-adapter
  lit-align export runs/quickstart --merge --dtype bfloat16 --output quickstart-merged
"""


def run(args: Sequence[str]) -> None:
    """Parses the arguments of `export`, exports, and says how far the result is from the trained model."""
    if any(word.split("=")[0] in ("--config", "-c") for word in args):
        raise UsageError("export takes the run itself: lit-align export runs/NAME --output DIR")
    parsed = build_parser().parse_args(list(args))
    if parsed.push is not None:
        demand_token()
    opened = open_run(parsed.run, parsed.base)
    with hints_at_base(parsed.base):
        exported = export_run(
            opened, parsed.output, parsed.merge, parsed.dtype, parsed.max_shard_size, parsed.check, parsed.device
        )
    note("\n".join([f"Exported {opened.weights} to {exported.folder}.", *_findings(exported), "To load it:", ""]))
    print("\n".join([*loading_lines(exported.folder), ""]))
    if parsed.push is not None:
        print(f"On the hub: {push(exported.folder, parsed.push, not parsed.public)}")


def _findings(exported: Export) -> list[str]:
    lines = []
    if exported.exported is not None:
        limit = exported.exported.limit
        lines.append(f"Loaded again, it differs from the policy by {exported.exported}; the limit is {limit:g}.")
    if exported.trained is not None:
        lines.append(f"From the policy as it was trained, in another precision, it differs by {exported.trained}.")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """The options of `lit-align export`."""
    parser = command_parser(
        "export",
        "Writes the trained model as a folder that transformers, peft and vLLM load: the adapter, or with "
        "--merge the whole model; after full fine-tuning all weights. It overwrites nothing.",
        EXAMPLES,
    )
    add_run(parser)
    parser.add_argument("--output", required=True, help="the folder to write")
    add_switch(parser, "--merge", False, "merge the adapter into its base, in full precision")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; as in training by default"
    )
    parser.add_argument("--max_shard_size", help="the largest file of weights, such as 2GB")
    add_switch(parser, "--check", True, "load the result and compare its log-probs with the trained model's")
    parser.add_argument("--no-check", dest="check", action="store_false", help="the same as --check false")
    parser.add_argument("--push", metavar="OWNER/NAME", help="make this repository on the hub; needs HF_TOKEN")
    add_switch(parser, "--public", False, "the repository is not private")
    return parser
