"""`lit-align judge`: how good is a judge? No policy is loaded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lit_align.reward  # noqa: F401  # jsonargparse finds by its short name any class that is imported
from lit_align import run_folder
from lit_align.cli.data_parser import data_parser, instantiate
from lit_align.cli.errors import UsageError
from lit_align.cli.keys import AcceptedKeys, refuse_unknown_keys
from lit_align.cli.parser import Parser
from lit_align.console import show_activity
from lit_align.data import AlignmentDataModule
from lit_align.data.static import pairs_of
from lit_align.escape import escape
from lit_align.records import PreferencePair
from lit_align.report.judge import judge_quality, readable
from lit_align.rows.loading import load_parts
from lit_align.seeding import derive_seed

DESCRIPTION = (
    "Measures the judge of a config's `data` section on labelled pairs: accuracy, order consistency, abstentions, "
    "ties, length bias and calibration. The pairs are those of `data.train`: rows of chosen and rejected, or "
    "candidates with scores, of which `data.selector` makes pairs. A run's whole config will do: its other sections "
    "are not used."
)


def run(args: Sequence[str]) -> None:
    """Parses the arguments of `judge`, measures the judge, prints and writes the result."""
    parser = _parser()
    refuse_unknown_keys(AcceptedKeys.of(parser), args)
    config = parser.parse_args(list(args))
    data: AlignmentDataModule = instantiate(parser, config).data
    if data.judge is None:
        raise UsageError("there is no judge to measure: set `data.judge`")
    counts: Counter[str] = Counter()
    pairs = labelled_pairs(data, config.held_out, config.seed_everything, counts)
    if config.max_pairs is not None and config.max_pairs < len(pairs):
        pairs = random.Random(derive_seed(config.seed_everything, "judge")).sample(pairs, config.max_pairs)
    with show_activity(len(pairs), "judging", "pairs") as bar:
        quality = judge_quality(data.judge, pairs, config.confidence, bar.update)
    if config.output is not None:
        run_folder.write_json(Path(config.output), {**asdict(quality), "rows": dict(counts)})
    print(escape("\n".join(filter(None, (readable(quality), data.judge.report())))))


def labelled_pairs(data: AlignmentDataModule, held_out: bool, seed: int, counts: Counter[str]) -> list[PreferencePair]:
    """The pairs of `data.train` with their labels.

    Args:
        data: the data module with the rows, before `setup`.
        held_out: takes only the pairs that a fit with this data and seed holds out.
        seed: the run's seed, which splits and selects.
        counts: counts rows, and pairs that are left out by reason.

    Raises:
        ValueError: there is no labelled pair.
    """
    train, val = data.sources()
    val_counts: Counter[str] = Counter()
    fraction = data.val_fraction if held_out else 0.0
    parts = load_parts(train, val if held_out else None, fraction, seed, counts, val_counts, True)
    if held_out and not parts[1]:
        raise UsageError("--held_out needs held-out pairs: set `data.val` or `data.val_fraction`")
    counts.update(val_counts)
    pairs: list[PreferencePair] = []
    for index, record in enumerate(parts[1] if held_out else parts[0]):
        pairs += pairs_of(record, data.pair_selector, derive_seed(seed, "select", index), counts)
    if not pairs:
        counted = ", ".join(f"{key}: {count}" for key, count in counts.items() if count)
        raise ValueError(
            f"expected labelled pairs in {data.train}, got none ({counted}): rows need `chosen` and `rejected`, or "
            "`candidates` with a `score` each"
        )
    return pairs


def _parser() -> Parser:
    parser = data_parser("lit-align judge", DESCRIPTION)
    parser.add_argument("--held_out", type=bool, default=False, help="only the pairs that a fit would hold out")
    parser.add_argument("--max_pairs", type=int | None, default=None, help="at most so many, drawn by the seed")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals, in (0, 1)")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write")
    return parser
