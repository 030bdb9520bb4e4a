"""`lit-align measure` on two files of scored candidates: no model, no config."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from lit_align import run_folder
from lit_align.boundary.measure import matched, measure_sets
from lit_align.data.loading import as_set, load_records
from lit_align.judges import RecordedScores
from lit_align.report.measurement import readable, result_record
from lit_align.seeding import derive_seed


def run(args: Sequence[str]) -> None:
    """Parses the words after `measure`, measures and writes the result."""
    parsed = _parser().parse_args(list(args))
    # Sets as they are: two candidates of the same text are two votes.
    on, off = ([as_set(one) for one in load_records(source)] for source in (parsed.on_policy, parsed.off_policy))
    pairs = matched(on, off)
    if parsed.max_prompts is not None and parsed.max_prompts < len(pairs):
        pairs = random.Random(derive_seed(parsed.seed, "measure")).sample(pairs, parsed.max_prompts)
    result = measure_sets(
        [a for a, _ in pairs], [b for _, b in pairs], RecordedScores(), parsed.confidence, progress=True
    )
    found = result_record(result, "measured on recorded scores")
    if parsed.output is not None:
        run_folder.write_json(parsed.output, found)
    print(readable(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-align measure",
        description="Which stage is a model in? Compares its answers with static ones by their recorded scores. "
        "The other form, lit-align measure --config FILE, samples and judges by itself.",
    )
    file_help = "candidate sets (JSON, JSONL, CSV, Parquet, also .gz), each candidate with a score"
    parser.add_argument("--on_policy", required=True, help=f"the model's answers: {file_help}")
    parser.add_argument("--off_policy", required=True, help=f"static answers to the same prompts: {file_help}")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--max_prompts", type=int, help="prompts to measure on at most; all by default")
    parser.add_argument("--seed", type=int, default=0, help="chooses the prompts where there are more")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the interval, in (0, 1)")
    return parser
