"""Measures each of several real models against all others, by recorded scores, on all prompts and sequentially.

    python benchmarks/alpaca_eval.py CANDIDATES

CANDIDATES is a JSONL file (also .gz) with a row for each prompt: `prompt` and `candidates`, each of them with
`model`, `text` and `score`. Each model in turn plays the policy; the other models' answers are the static ones. The
exit code is 1 if a score differs from the share of votes computed directly.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from common import machine, table, write_json

from lit_align.boundary import BoundaryResult
from lit_align.cli.measure import measure_recorded
from lit_align.records import CandidateSet
from lit_align.rows.alike import group_alike
from lit_align.rows.loading import as_set, load_records

TOLERANCE = 1e-9
HEADER = ("model", "all prompts", "score", "interval", "stage", "sequential", "fewest to most", "agree", "undecided")


def main() -> int:
    options = _options()
    sets = [as_set(record) for record in load_records(options.candidates)]
    candidates = chain.from_iterable(candidate_set.candidates for candidate_set in sets)
    models = sorted({str(candidate.model) for candidate in candidates})
    results = {model: measure_model(sets, model, options.alpha, options.seeds) for model in models}
    ranked = sorted(results.items(), key=lambda item: item[1]["all"].score)
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
    print(table(header, [_row(model, result) for model, result in ranked]))
    largest_difference = max(abs(result["all"].score - result["direct"]) for result in results.values())
    print(f"\nlargest difference from the votes counted directly: {largest_difference:.1e}")
    write_json(
        options.output,
        {
            "machine": machine(1),
            "alpha": options.alpha,
            "seeds": options.seeds,
            "largest_difference": largest_difference,
            "models": {model: _as_json(result) for model, result in ranked},
        },
    )
    return int(largest_difference > TOLERANCE)


def without_near_duplicates(sets: Sequence[CandidateSet]) -> list[CandidateSet]:
    """Leaves out the prompts of which a measurement would take one for another, until it finds no more of them."""
    groups = group_alike(candidates.prompt for candidates in sets)
    kept = list({groups[candidates.prompt]: candidates for candidates in reversed(sets)}.values())[::-1]
    return kept if len(kept) == len(sets) else without_near_duplicates(kept)


def measure_model(sets: Sequence[CandidateSet], model: str, alpha: float, seeds: int) -> dict[str, Any]:
    """Measures a model against the others: on all prompts, sequentially with each seed, and directly."""
    sets = without_near_duplicates([each for each in sets if _select(each, lambda name: name == model).candidates])
    on = [_select(candidate_set, lambda name: name == model) for candidate_set in sets]
    off = [_select(candidate_set, lambda name: name != model) for candidate_set in sets]
    return {
        "all": measure_recorded(on, off, alpha, sequential=False),
        "sequential": [measure_recorded(on, off, alpha, seed=seed) for seed in range(seeds)],
        "direct": count_directly(on, off),
    }


def count_directly(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> float:
    """Averages over prompts the share of comparisons that the first side wins, with ties as half a win."""
    shares = []
    for a, b in zip(on, off, strict=True):
        votes = [
            (x.score > y.score) + (x.score == y.score) / 2  # type: ignore[operator]
            for x, y in product(a.candidates, b.candidates)
        ]
        if votes:
            shares.append(sum(votes) / len(votes))
    return sum(shares) / len(shares)


def _select(candidate_set: CandidateSet, has_model: Callable[[str | None], bool]) -> CandidateSet:
    return replace(candidate_set, candidates=tuple(c for c in candidate_set.candidates if has_model(c.model)))


def _as_json(result: dict[str, Any]) -> dict[str, Any]:
    return {"all": asdict(result["all"]), "sequential": list(map(asdict, result["sequential"]))}


def _row(model: str, result: dict[str, Any]) -> list[str]:
    whole: BoundaryResult = result["all"]
    runs: list[BoundaryResult] = result["sequential"]
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
    parser.add_argument("--seeds", type=int, default=20, help="how many random orders of the prompts to measure")
    parser.add_argument("--alpha", type=float, default=0.05, help="the probability of a wrong decision")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/alpaca_eval.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
