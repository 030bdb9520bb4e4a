"""`lit-align sample`: a trained model's answers to prompts, as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lit_align import run_folder
from lit_align.cli.examples import command_parser
from lit_align.cli.words import add_run, add_switch, load_quietly
from lit_align.escape import escape_json
from lit_align.sampling import TransformersSampler
from lit_align.talk import answer_rows, read_prompts_of
from lit_align.trained import open_run

EXAMPLES = """\
examples:
  lit-align sample runs/quickstart --prompts prompts.txt --output answers.jsonl
  lit-align sample runs/quickstart --prompts - --compare < prompts.jsonl
"""


def run(args: Sequence[str]) -> None:
    """Parses the arguments of `sample`, samples, and writes the answers."""
    parsed = build_parser().parse_args(list(args))
    sampler = TransformersSampler(
        num_candidates=parsed.num_candidates,
        temperature=parsed.temperature,
        top_p=parsed.top_p,
        top_k=parsed.top_k,
        max_new_tokens=parsed.max_new_tokens,
        batch_size=parsed.batch_size,
    )
    if parsed.output is not None and parsed.output.exists():
        raise FileExistsError(f"{parsed.output} is there already: choose another --output")
    opened = open_run(parsed.run, parsed.base)
    sets = read_prompts_of(parsed.prompts, sys.stdin, parsed.system)
    policy = load_quietly(opened, parsed)
    total = len(sets) * parsed.num_candidates * (2 if parsed.compare else 1)
    with tqdm(total=total, desc="answers", leave=False, delay=0.5, disable=None) as bar:
        rows = list(answer_rows(policy, sets, sampler, opened.name, parsed.seed, parsed.compare, bar.update))
    if parsed.output is None:
        for row in rows:
            print(escape_json(json.dumps(row, ensure_ascii=False)))
        return
    run_folder.write_jsonl(parsed.output, rows)
    print(f"Answers to {len(rows)} prompts are in {parsed.output}")


def build_parser() -> argparse.ArgumentParser:
    """The options of `lit-align sample`."""
    parser = command_parser(
        "sample",
        "Answers prompts with a trained model and writes a JSON object a line; each prompt is answered "
        "once, whatever the other prompts are.",
        EXAMPLES,
    )
    add_run(parser)
    parser.add_argument(
        "--prompts", required=True, metavar="FILE|-",
        help="rows with a `prompt` (JSON, JSONL, CSV, Parquet), a .txt file of lines, or - for standard input",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSONL file to write; standard output by default")
    add_switch(parser, "--compare", False, "also answer with the model that the run started from")
    parser.add_argument("--system", help="the system turn of prompts that have none")
    parser.add_argument("--num_candidates", type=int, default=1, help="answers a prompt; default 1")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy; default 0.7")
    parser.add_argument("--top_p", type=float, default=0.95, help="share of the likeliest tokens; default 0.95")
    parser.add_argument("--top_k", type=int, default=0, help="only so many likeliest tokens; 0 is all")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer; default 256")
    parser.add_argument("--batch_size", type=int, default=32, help="answers sampled at once; default 32")
    parser.add_argument("--seed", type=int, default=0, help="decides what is drawn; default 0")
    return parser
