"""Simulates measurements of the boundary score: how many prompts a decision takes, and how often it is wrong.

    python benchmarks/sequential.py

For true scores from 0.3 to 0.7 and several spreads of the shares, each simulated measurement draws prompts until
0.5 is outside the interval, checked after every batch, or until the budget is used up. A measurement with the fixed
budget and its own interval is the comparison. The simulation calls the functions of
`lit_align.boundary.SequentialTest`, for all simulations at once.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, astuple, dataclass
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

    A prompt's probability of a vote for on-policy is drawn from Beta(concentration * score, concentration *
    (1 - score)), and its votes by that probability.

    Args:
        votes: cross votes per prompt.
        concentration: a small one makes most prompts one-sided; None gives all prompts the same probability.
        alike: prompts that share one probability, as near-duplicates do; they come in random order.
    """

    votes: int
    concentration: float | None = None
    alike: int = 1


SPREADS = {
    "all prompts alike": Spread(4),
    "mixed prompts": Spread(4, 2.0),
    "mostly one-sided": Spread(4, 1.0),
    "many votes, mixed": Spread(40, 2.0),
    "one vote per prompt": Spread(1),
    "mixed prompts, each twice": Spread(4, 2.0, alike=2),
    "mixed prompts, each eight times": Spread(4, 2.0, alike=8),
}


@dataclass(frozen=True)
class Outcome:
    """Averages over simulated measurements.

    Args:
        score: the true score.
        prompts: mean number of prompts until the measurement ended.
        undecided: share of measurements that used up the budget.
        wrong: share of measurements with a wrong decision (at a true score of 0.5 any decision is wrong).
        covered_at_stop: share of measurements with the true score inside the interval at their end.
        covered_always: share of measurements with the true score inside at every look up to the budget.
        fixed_undecided: share of fixed-budget intervals with 0.5 inside.
        fixed_wrong: share of fixed-budget intervals on the wrong side of 0.5.
        fixed_covered: share of fixed-budget intervals with the true score inside.
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
    """Simulates measurements of one true score."""
    rng = np.random.default_rng([seed, round(1000 * score), spread.votes])
    probabilities: Any = score
    if spread.concentration is not None:
        a = spread.concentration * score
        b = spread.concentration * (1 - score)
        probabilities = rng.beta(a, b, (simulations, -(-budget // spread.alike)))
        if spread.alike > 1:
            probabilities = rng.permuted(np.repeat(probabilities, spread.alike, axis=1), axis=1)[:, :budget]
    votes = rng.binomial(spread.votes, probabilities, (simulations, budget))
    looks = np.minimum(np.arange(batch, budget + batch, batch), budget)
    counts = _counts_at(votes, looks, spread.votes)
    values = np.arange(spread.votes + 1) / spread.votes
    above, below = (_is_rejected(values, counts, 0.5, side, alpha) for side in (1, -1))  # [simulations, looks]
    missed = _is_rejected(values, counts, score, 1, alpha) | _is_rejected(values, counts, score, -1, alpha)
    decided = above | below
    last = np.where(decided.any(1), decided.argmax(1), len(looks) - 1)
    rows = np.arange(simulations)
    totals = counts[:, -1] @ values
    squares = counts[:, -1] @ values**2
    fixed_intervals = [mean_interval(t, s, budget, 1 - alpha) for t, s in zip(totals, squares, strict=True)]
    low, high = np.array(fixed_intervals).T
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


def _counts_at(votes: np.ndarray, looks: np.ndarray, max_votes: int) -> np.ndarray:
    """[simulations, looks, max_votes + 1]: how many prompts have had each number of votes at each look."""
    starts = np.concatenate([[0], looks[:-1]])
    new = [np.add.reduceat(votes == number, starts, axis=1, dtype=np.int32) for number in range(max_votes + 1)]
    return np.cumsum(np.stack(new, -1), axis=1).astype(np.float64)


def _is_rejected(values: np.ndarray, counts: np.ndarray, mean: float, side: int, alpha: float) -> np.ndarray:
    """Whether the test rejects that the true mean is at most (side 1) or at least (side -1) `mean`."""
    capital = log_capital(values, counts, mean) if side == 1 else log_capital(1 - values, counts, 1 - mean)
    return capital >= log_threshold(alpha)


def _wrong(score: float, above: np.ndarray, below: np.ndarray) -> float:
    return float(((above & (score <= 0.5)) | (below & (score >= 0.5))).mean())


def main() -> None:
    options = _options()
    start = time.perf_counter()
    settings = (options.simulations, options.budget, options.batch, options.alpha, options.seed)
    outcomes: dict[str, list[Outcome]] = {}
    trajectory: dict[str, list[float]] = {}
    for name, spread in SPREADS.items():
        outcomes[name] = [simulate(score, spread, *settings) for score in SCORES]
        trajectory[name] = [simulate(score, spread, *settings).prompts for score in TRAJECTORY]
    for name, spread in SPREADS.items():
        print(f"\n{name} ({_describe(spread)})\n\n{_table(outcomes[name], options.budget)}")
    print(f"\nThe paper's trajectory, mean prompts against {len(TRAJECTORY) * options.budget} of fixed budgets\n")
    rows = [[name, *map("{:.0f}".format, [*means, sum(means)])] for name, means in trajectory.items()]
    scores = list(map(str, TRAJECTORY))
    print(table(["spread", *scores, "sum"], rows))
    print(f"\n{time.perf_counter() - start:.0f} s", flush=True)
    write_json(
        options.output,
        {
            "machine": machine(1),
            "settings": {key: value for key, value in vars(options).items() if key != "output"},
            "spreads": {name: asdict(spread) for name, spread in SPREADS.items()},
            "outcomes": {name: list(map(asdict, of_spread)) for name, of_spread in outcomes.items()},
            "trajectory": {
                name: dict(zip(map(str, TRAJECTORY), means, strict=True)) for name, means in trajectory.items()
            },
        },
    )


def _describe(spread: Spread) -> str:
    concentration = spread.concentration
    distribution = "all alike" if concentration is None else f"Beta with concentration {concentration:g}"
    alike = f", {spread.alike} prompts of one probability" if spread.alike > 1 else ""
    return f"{spread.votes} votes per prompt, {distribution}{alike}"


def _table(outcomes: list[Outcome], budget: int) -> str:
    header = [
        "true score", "prompts", "undecided", "wrong", "covered at stop", "covered always",
        f"fixed {budget}: undecided", "wrong", "covered",
    ]  # fmt: skip
    rows = []
    for outcome in outcomes:
        score, prompts, *shares = astuple(outcome)
        rows.append([f"{score:.2f}", f"{prompts:.0f}", *(f"{100 * share:.1f} %" for share in shares)])
    return table(header, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000, help="measurements for each score and spread")
    parser.add_argument("--budget", type=int, default=2000, help="the most prompts of a measurement")
    parser.add_argument("--batch", type=int, default=32, help="prompts between two looks")
    parser.add_argument("--alpha", type=float, default=0.05, help="the probability of a wrong decision")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/sequential.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
