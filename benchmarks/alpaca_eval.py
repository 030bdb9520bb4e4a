"""Measures real models against a pool of the others, by recorded verdicts: all prompts, and only as many as it takes.

    python benchmarks/alpaca_eval.py CANDIDATES

CANDIDATES is a JSONL file (also .gz) with a row for each prompt: `prompt` and `candidates`, each of them with
`model`, `text` and `score`. Each model in turn plays the policy; the others' answers are the static ones. Exits
with 1 where a score differs from the share of votes computed directly.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import machine, table, write_json

from lit_align.boundary import BoundaryResult
from lit_align.cli.measure import measure_recorded
from lit_align.data.loading import as_set, load_records
from lit_align.records import CandidateSet

TOLERANCE = 1e-9


def main() -> int:
    options = _options()
    sets = [as_set(record) for record in load_records(options.candidates)]
    models = sorted({str(candidate.model) for one in sets for candidate in one.candidates})
    found = {model: measured(sets, model, options.alpha, options.seeds) for model in models}
    ranked = sorted(found.items(), key=lambda item: item[1]["all"].score)
    header = [
        "model",
        "all prompts",
        "score",
        "interval",
        "stage",
        "sequential",
        "fewest to most",
        "agree",
        "undecided",
    ]
    print(table(header, [_row(model, one) for model, one in ranked]))
    worst = max(abs(one["all"].score - one["direct"]) for one in found.values())
    print(f"\nlargest difference from the votes counted directly: {worst:.1e}")
    write_json(
        options.output,
        {
            "machine": machine(1),
            "alpha": options.alpha,
            "seeds": options.seeds,
            "largest_difference": worst,
            "models": {
                model: {"all": asdict(one["all"]), "sequential": [asdict(run) for run in one["sequential"]]}
                for model, one in ranked
            },
        },
    )
    return int(worst > TOLERANCE)


def measured(sets: Sequence[CandidateSet], model: str, alpha: float, seeds: int) -> dict[str, Any]:
    """One model against the others: on all prompts, sequentially with each seed, and the score by hand."""
    on = [_those(one, model, True) for one in sets]
    off = [_those(one, model, False) for one in sets]
    return {
        "all": measure_recorded(on, off, alpha, sequential=False),
        "sequential": [measure_recorded(on, off, alpha, seed=seed) for seed in range(seeds)],
        "direct": directly(on, off),
    }


def directly(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> float:
    """The mean over prompts of the share of pairs that the first side wins, ties half; each prompt comes once."""
    shares = []
    for a, b in zip(on, off, strict=True):
        won = [
            (x.score > y.score) + (x.score == y.score) / 2  # type: ignore[operator]
            for x in a.candidates
            for y in b.candidates
        ]
        if won:
            shares.append(sum(won) / len(won))
    return sum(shares) / len(shares)


def _those(one: CandidateSet, model: str, mine: bool) -> CandidateSet:
    return replace(one, candidates=tuple(c for c in one.candidates if (c.model == model) == mine))


def _row(model: str, found: dict[str, Any]) -> list[str]:
    whole: BoundaryResult = found["all"]
    runs: list[BoundaryResult] = found["sequential"]
    prompts = [run.prompts for run in runs]
    return [
        model,
        str(whole.prompts),
        f"{whole.score:.3f}",
        f"{whole.low:.3f} to {whole.high:.3f}",
        whole.stage.value.replace("_", "-") + ("" if whole.decided else ", undecided"),
        f"{statistics.mean(prompts):.0f}",
        f"{min(prompts)} to {max(prompts)}",
        f"{sum(run.stage is whole.stage for run in runs)} of {len(runs)}",
        f"{sum(not run.decided for run in runs)} of {len(runs)}",
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", help="the file of prompts with scored candidates")
    parser.add_argument("--seeds", type=int, default=20, help="orders of the prompts")
    parser.add_argument("--alpha", type=float, default=0.05, help="the chance of error")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/alpaca_eval.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
