"""Simulates measurements of the boundary score: how many prompts until it is decided, and how often that is wrong.

    python benchmarks/sequential.py

For true scores from 0.3 to 0.7 and several spreads of the shares, each simulated measurement draws prompts until
0.5 is outside the interval, looking after every batch, or until the budget is used up. Beside it stands the fixed
budget with its own interval. It calls the functions of `lit_align.boundary.SequentialTest`, for all simulations at
once.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, table, write_json

from lit_align.boundary.interval import mean_interval
from lit_align.boundary.sequential import log_capital, log_threshold

SCORES = (0.3, 0.35, 0.4, 0.45, 0.48, 0.5, 0.52, 0.55, 0.6, 0.65, 0.7)
TRAJECTORY = (0.40, 0.66, 0.69)
"""The paper's scores of Zephyr over its iterations."""


@dataclass(frozen=True)
class Spread:
    """How the shares of prompts differ.

    A prompt's chance is drawn from Beta(concentration * score, concentration * (1 - score)), its votes by that
    chance.

    Args:
        votes: cross votes of a prompt.
        concentration: None gives all prompts the same chance; a small one makes most of them one-sided.
    """

    votes: int
    concentration: float | None = None


SPREADS = {
    "all prompts alike": Spread(4),
    "mixed prompts": Spread(4, 2.0),
    "mostly one-sided": Spread(4, 1.0),
    "many votes, mixed": Spread(40, 2.0),
    "one vote a prompt": Spread(1),
}


@dataclass(frozen=True)
class Outcome:
    """Averages over simulated measurements.

    Args:
        score: the true one.
        prompts: mean number until the measurement ended.
        undecided: share that used up the budget.
        wrong: share that was decided on the wrong side (of exactly 0.5 both are wrong).
        covered_at_stop: share whose interval held the true score when the measurement ended.
        covered_always: share whose interval held it at every look up to the budget.
        fixed_undecided: share of the fixed budget's intervals with 0.5 inside.
        fixed_wrong: share of them on the wrong side.
        fixed_covered: share of them that held the true score.
    """

    score: float
    prompts: float
    undecided: float
    wrong: float
    covered_at_stop: float
    covered_always: float
    fixed_undecided: float
    fixed_wrong: float
    fixed_covered: float


def simulate(
    score: float, spread: Spread, simulations: int, budget: int, batch: int, alpha: float, seed: int
) -> Outcome:
    """Many measurements of one true score."""
    rng = np.random.default_rng([seed, round(1000 * score), spread.votes])
    chances: Any = score
    if spread.concentration is not None:
        chances = rng.beta(spread.concentration * score, spread.concentration * (1 - score), (simulations, budget))
    votes = rng.binomial(spread.votes, chances, (simulations, budget))
    looks = np.minimum(np.arange(batch, budget + batch, batch), budget)
    counts = _counts_at(votes, looks, spread.votes)
    values = np.arange(spread.votes + 1) / spread.votes
    above, below = (_lost(values, counts, 0.5, side, alpha) for side in (1, -1))  # [simulations, looks]
    missed = _lost(values, counts, score, 1, alpha) | _lost(values, counts, score, -1, alpha)
    decided = above | below
    last = np.where(decided.any(1), decided.argmax(1), len(looks) - 1)
    rows = np.arange(simulations)
    totals, squares = counts[:, -1] @ values, counts[:, -1] @ values**2
    fixed = [mean_interval(t, s, budget, 1 - alpha) for t, s in zip(totals, squares, strict=True)]
    low, high = np.array(fixed).T
    return Outcome(
        score=score,
        prompts=float(looks[last].mean()),
        undecided=float((~decided.any(1)).mean()),
        wrong=_wrong(score, above[rows, last], below[rows, last]),
        covered_at_stop=float((~missed[rows, last]).mean()),
        covered_always=float((~missed.any(1)).mean()),
        fixed_undecided=float(((low <= 0.5) & (high >= 0.5)).mean()),
        fixed_wrong=_wrong(score, low > 0.5, high < 0.5),
        fixed_covered=float(((low <= score) & (score <= high)).mean()),
    )


def _counts_at(votes: np.ndarray, looks: np.ndarray, most: int) -> np.ndarray:
    """[simulations, looks, most + 1]: how often each number of votes had come at each look."""
    starts = np.concatenate([[0], looks[:-1]])
    each = [np.add.reduceat(votes == number, starts, axis=1, dtype=np.int32) for number in range(most + 1)]
    return np.cumsum(np.stack(each, -1), axis=1).astype(np.float64)


def _lost(values: np.ndarray, counts: np.ndarray, mean: float, side: int, alpha: float) -> np.ndarray:
    """Where "the mean is at most `mean`" (side 1) or "at least" (side -1) has lost."""
    capital = log_capital(values, counts, mean) if side == 1 else log_capital(1 - values, counts, 1 - mean)
    return capital >= log_threshold(alpha)


def _wrong(score: float, above: np.ndarray, below: np.ndarray) -> float:
    return float(((above & (score <= 0.5)) | (below & (score >= 0.5))).mean())


def main() -> None:
    options = _options()
    started = time.perf_counter()
    settings = (options.simulations, options.budget, options.batch, options.alpha, options.seed)
    found = {name: [simulate(score, spread, *settings) for score in SCORES] for name, spread in SPREADS.items()}
    paper = {
        name: [simulate(score, spread, *settings).prompts for score in TRAJECTORY] for name, spread in SPREADS.items()
    }
    for name, outcomes in found.items():
        print(f"\n{name} ({_described(SPREADS[name])})\n\n{_table(outcomes, options.budget)}")
    print(f"\nThe paper's trajectory, mean prompts against {len(TRAJECTORY) * options.budget} of fixed budgets\n")
    header = ["spread", *map(str, TRAJECTORY), "sum"]
    print(table(header, [[name, *(f"{n:.0f}" for n in means), f"{sum(means):.0f}"] for name, means in paper.items()]))
    print(f"\n{time.perf_counter() - started:.0f} s", flush=True)
    write_json(
        options.output,
        {
            "machine": machine(1),
            "settings": {key: value for key, value in vars(options).items() if key != "output"},
            "spreads": {name: asdict(spread) for name, spread in SPREADS.items()},
            "outcomes": {name: [asdict(one) for one in outcomes] for name, outcomes in found.items()},
            "trajectory": {name: dict(zip(map(str, TRAJECTORY), means, strict=True)) for name, means in paper.items()},
        },
    )


def _described(spread: Spread) -> str:
    chance = (
        "one chance for all" if spread.concentration is None else f"Beta with concentration {spread.concentration:g}"
    )
    return f"{spread.votes} votes a prompt, {chance}"


def _table(outcomes: list[Outcome], budget: int) -> str:
    header = [
        "true score", "prompts", "undecided", "wrong", "covered at stop", "covered always",
        f"fixed {budget}: undecided", "wrong", "covered",
    ]  # fmt: skip
    rows = [
        [
            f"{one.score:.2f}",
            f"{one.prompts:.0f}",
            *(
                f"{100 * share:.1f} %"
                for share in (
                    one.undecided, one.wrong, one.covered_at_stop, one.covered_always,
                    one.fixed_undecided, one.fixed_wrong, one.fixed_covered,
                )
            ),
        ]
        for one in outcomes
    ]  # fmt: skip
    return table(header, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000, help="measurements for each score and spread")
    parser.add_argument("--budget", type=int, default=2000, help="prompts a measurement at most")
    parser.add_argument("--batch", type=int, default=32, help="prompts between two looks")
    parser.add_argument("--alpha", type=float, default=0.05, help="the chance of error")
    parser.add_argument("--seed", type=int, default=0, help="of the simulations")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/sequential.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
