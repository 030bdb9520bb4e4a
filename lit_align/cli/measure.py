"""`lit-align measure` on two files of scored candidates: no model, no config."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from lit_align import run_folder
from lit_align.boundary.measurement import Measurement
from lit_align.boundary.result import BoundaryResult
from lit_align.checks import require_at_least_1
from lit_align.cli.words import read_bool
from lit_align.console import note, show_activity
from lit_align.judges import RecordedScores
from lit_align.records import CandidateSet
from lit_align.report.measurement import readable, result_record
from lit_align.rows.alike import draw_unlike, group_alike
from lit_align.rows.loading import as_set, load_records
from lit_align.rows.matching import require_matched
from lit_align.seeding import derive_seed


def run(args: Sequence[str]) -> None:
    """Parses the arguments of `measure`, measures, prints and writes the result."""
    parsed = _parser().parse_args(list(args))
    # Sets as they are: two candidates of the same text are two votes.
    on = [as_set(row) for row in load_records(parsed.on_policy)]
    off = [as_set(row) for row in load_records(parsed.off_policy)]
    result = measure_recorded(on, off, parsed.alpha, parsed.sequential, parsed.max_prompts, parsed.seed, parsed.graded)
    record = result_record(result, "measured on recorded scores")
    if parsed.output is not None:
        run_folder.write_json(parsed.output, record)
    print(readable(record))


def measure_recorded(
    on: Sequence[CandidateSet],
    off: Sequence[CandidateSet],
    alpha: float = 0.05,
    sequential: bool = True,
    max_prompts: int | None = None,
    seed: int = 0,
    graded: bool = False,
) -> BoundaryResult:
    """Measures on candidates that carry their scores, prompt by prompt in random order.

    Args:
        on: the model's answers.
        off: static answers; sets are matched by prompt, and one of each group of prompts that are alike is taken.
        alpha: the chance of error, in (0, 1).
        sequential: stops as soon as the stage is decided.
        max_prompts: the most prompts to measure on; None means all.
        seed: decides the order of the prompts.
        graded: counts how much better an answer is, not votes.

    Raises:
        ValueError: no prompt has answers on both sides, or an answer has no score.
    """
    require_at_least_1(max_prompts=max_prompts)
    measurement = Measurement(RecordedScores(), alpha, sequential, graded)
    pairs = {own.prompt: (own, static) for own, static in require_matched(on, off)}
    groups = group_alike(pairs)
    unlike = len(set(groups.values()))
    if unlike < len(pairs):
        note(f"{len(pairs)} prompts are {unlike} groups of prompts that are alike: one of each is measured on")
    count = unlike if max_prompts is None else min(max_prompts, unlike)
    sample = draw_unlike(
        [own for own, _ in pairs.values()], groups.__getitem__, count, random.Random(derive_seed(seed, "measure"))
    )
    with show_activity(len(sample), "measuring", "prompts") as activity:
        for own in sample:
            measurement.add([own], [pairs[own.prompt][1]])
            activity.update()
            if measurement.done:
                break
    return measurement.result("pool" if count == unlike else "budget")


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
    parser.add_argument(
        "--sequential",
        type=read_bool,
        default=True,
        metavar="{true,false}",
        help="stop once it is decided (the default)",
    )
    parser.add_argument(
        "--graded", type=read_bool, default=False, metavar="{true,false}",
        help="go by how much better an answer is, in units of the range of its prompt's scores, not by votes",
    )  # fmt: skip
    parser.add_argument("--alpha", type=float, default=0.05, help="the chance of error, in (0, 1)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the order of the prompts")
    return parser
