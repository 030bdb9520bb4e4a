"""The tables of the report, each computed only from records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from statistics import fmean

from experiments.arm import Arm
from experiments.crossing import all_points, crossing_table, decided_table
from experiments.forks import (
    Fork,
    Gain,
    Gauge,
    Record,
    Start,
    read_forks,
    read_gain,
    read_start,
)
from experiments.predictors import Label, accuracy, all_predictors, pair_yield, published, ranking
from experiments.run_tables import run_tables
from experiments.runs import read_runs
from experiments.setup import VARIANTS
from experiments.stats import mean_of, wilson
from experiments.table import Table, grouped, signed
from lit_align.boundary import SequentialTest

BINS = (0.0, 0.05, 0.1, 0.2, 0.5)
LOOK_EVERY = 16
"""Prompts between two looks of the sequential test, as in whole runs."""


def forks_table(forks: Sequence[Fork], gauge: Gauge) -> Table:
    """Table 1: one row for each task, starting point and loss, over seeds."""
    rows = []
    for (task, _, loss), group in grouped(forks, lambda f: (f.start.arm.task, f.start.arm.start, f.loss)).items():
        scores = [fork.start.boundary for fork in group]
        low = min(score.low for score in scores)
        high = max(score.high for score in scores)
        unequal = [fork for fork in group if fork.on_pays is not None]
        rows.append(
            [
                task, _start(group[0].start.arm), loss, str(len(group)),
                f"{fmean(score.value for score in scores):.3f} [{low:.2f}, {high:.2f}]",
                f"{fmean(fork.off.mean for fork in group):+.3f}", f"{fmean(fork.on.mean for fork in group):+.3f}",
                signed(mean_of([fork.difference.value for fork in group])),
                f"{sum(bool(fork.on_pays) for fork in unequal)} of {len(unequal)}",
                f"{sum(map(_right, unequal))} of {len(unequal)}",
                f"{fmean(pair_yield(fork.start.on) for fork in group):.2f}",
                f"{fmean(fork.on.judged / fork.on.pairs for fork in group):.1f}",
            ]
        )  # fmt: skip
    header = (
        "task", "start", "loss", "seeds", "score before [lowest, highest end]", "gain off", "gain on", "on less off",
        "on larger", "score right", "prompts that give a pair", "judged answers per pair",
    )  # fmt: skip
    unit = "win rate against the start, less 0.5" if gauge == "win" else "mean score, less the start's"
    note = f"Gains in {unit}, on held-out prompts, from equally many pairs; intervals of 95 % over seeds."
    return Table(f"Table 1. What pays from here ({gauge})", note, header, rows)


def each_fork_table(forks: Sequence[Fork]) -> Table:
    """Lists every fork by itself."""
    rows = [
        [
            fork.start.arm.task, str(fork.start.arm.seed), _start(fork.start.arm), fork.loss,
            str(fork.start.boundary),
            f"{fork.off.mean:+.3f}", f"{fork.on.mean:+.3f}", signed(fork.difference), _larger(fork),
            {None: "-", True: "yes", False: "no"}[None if fork.on_pays is None else _right(fork)],
        ]
        for fork in forks
    ]  # fmt: skip
    header = (
        "task", "seed", "start", "loss", "score before", "gain off", "gain on", "on less off", "larger", "score right",
    )  # fmt: skip
    return Table("Every fork", "Intervals of 95 % over prompts.", header, rows)


def how_often_right(forks: Sequence[Fork], gauge: Gauge) -> Table:
    """Counts how often the score predicts the better source, in several groups of forks."""
    unequal = [fork for fork in forks if fork.on_pays is not None]
    groups = {"all": unequal, "clear (0 outside the interval of the difference)": [f for f in unequal if _clear(f)]}
    for low, high in pairwise(BINS):
        end = high if high < BINS[-1] else math.inf
        groups[f"score {low:g} to {high:g} from 0.5"] = [f for f in unequal if low <= abs(published(f.start)) < end]
    groups |= {f"task {task}": group for task, group in grouped(unequal, lambda f: f.start.arm.task).items()}
    groups |= {f"loss {loss}": group for loss, group in grouped(unequal, lambda f: f.loss).items()}
    hits = {name: list(map(_right, group)) for name, group in groups.items()}
    hits["all, had it always said off-policy"] = [not fork.on_pays for fork in unequal]
    hits["all, had it always said on-policy"] = [bool(fork.on_pays) for fork in unequal]
    rows = []
    for name, right in hits.items():
        rows.append([name, str(len(right)), str(sum(right)), str(wilson(sum(right), len(right)))])
    note = (
        f"{len(forks) - len(unequal)} forks with equal gains from both sources are left out. Wilson's intervals of "
        "95 %, as if forks were independent; the table of predictors has wider ones."
    )
    return Table(f"How often the score tells ({gauge})", note, ("forks", "number", "right", "share right"), rows)


def predictors_table(forks: Sequence[Fork], gauge: Gauge) -> Table:
    """Compares the predictors."""
    if not forks:
        return Table(f"Predictors ({gauge})", "No fork is finished.", ("predictor",), [])
    measures = (accuracy, ranking)
    labels: dict[str, Label] = {"pairs": lambda f: f.on_pays, "seconds": lambda f: f.on_pays_by_the_second}
    rows = []
    for name, predictor in all_predictors(forks).items():
        cells = [str(measure(predictor, label, forks)) for label, measure in product(labels.values(), measures)]
        rows.append([name, *cells])
    columns = [f"{measure}, equal {unit}" for unit, measure in product(labels, ("right", "AUC"))]
    note = (
        "Right: share of forks with the better source predicted. AUC: the probability that a fork with a larger gain "
        "from on-policy pairs ranks above one without; 0.5 is a guess. Bootstrap intervals of 95 % over trajectories "
        "(task, seed)."
    )
    return Table(f"Predictors ({gauge})", note, ("predictor", *columns), rows)


def selectors_table(records: Mapping[Arm, Record], gauge: Gauge) -> Table:
    """Table 2: diverse against good off-policy pairs."""
    rows = []
    selected = [arm for arm in records if arm.selector == "diversity"]
    for (task, _), arms in grouped(selected, lambda arm: (arm.task, arm.start)).items():
        gains = [pair for arm in arms if (pair := _beside_plain(arm, records, gauge)) is not None]
        if gains:
            difference = mean_of([diverse.mean - plain.mean for plain, diverse in gains])
            rows.append(
                [task, _start(arms[0]), str(len(gains)), f"{fmean(plain.mean for plain, _ in gains):+.3f}",
                 f"{fmean(diverse.mean for _, diverse in gains):+.3f}", signed(difference)]
            )  # fmt: skip
    header = ("task", "start", "seeds", "gain, quality", "gain, diversity", "diversity less quality")
    note = (
        "Off-policy pairs on both sides, of the same candidates, from equally many pairs: best against worst, and the "
        "two most different. Intervals of 95 % over seeds."
    )
    return Table(f"Table 2. Diversity or quality ({gauge})", note, header, rows)


def _beside_plain(arm: Arm, records: Mapping[Arm, Record], gauge: Gauge) -> tuple[Gain, Gain] | None:
    """The gains of the arm without its selector and variant, which is one of Table 1, and of the arm itself."""
    plain = replace(arm, selector="", variant="")
    scout = replace(plain, schedule="off")
    if plain not in records or scout not in records:
        return None
    start = read_start(scout, records[scout])
    return read_gain(records[plain], start, gauge), read_gain(records[arm], start, gauge)


def variants_table(records: Mapping[Arm, Record], gauge: Gauge) -> Table:
    """Table 4: on-policy forks with one setting changed."""
    rows = []
    varied = [arm for arm in records if arm.variant in VARIANTS]
    for (task, variant), arms in grouped(varied, lambda arm: (arm.task, arm.variant)).items():
        gains = [pair for arm in arms if (pair := _beside_plain(arm, records, gauge)) is not None]
        if gains:
            plain, changed = zip(*gains, strict=True)
            difference = mean_of([b.mean - a.mean for a, b in gains])
            rows.append(
                [task, variant, str(len(gains)), f"{fmean(gain.mean for gain in plain):+.3f}",
                 f"{fmean(gain.mean for gain in changed):+.3f}", signed(difference),
                 f"{fmean(gain.judged / gain.pairs for gain in changed):.1f}",
                 f"{fmean(gain.seconds for gain in changed):.0f} ({fmean(gain.seconds for gain in plain):.0f})"]
            )  # fmt: skip
    header = ("task", "variant", "seeds", "gain, plain", "gain", "difference", "judged answers per pair", "seconds")
    note = (
        "On-policy pairs from the base model after one injection; plain: 4 answers at temperature 0.7, rounds of 32 "
        "prompts, the reference is the start. Intervals of 95 % over seeds; in brackets the plain arm's seconds."
    )
    return Table(f"Table 4. Settings of the on-policy stage ({gauge})", note, header, rows)


def measuring_table(records: Mapping[Arm, Record]) -> Table:
    """Replays the sequential test on the prompts of each fixed measurement."""
    starts = [read_start(arm, record) for arm, record in records.items() if arm.scouts]
    rows = []
    for (task, _), group in grouped(starts, lambda start: (start.arm.task, start.arm.start)).items():
        replays = [replay(start) for start in group]
        prompts = [len(start.on) for start in group]
        seconds = [start.decision.seconds or 0.0 for start in group]
        sequential = [s * used / n for s, (used, *_), n in zip(seconds, replays, prompts, strict=True)]
        fixed_sides = [published(start) >= 0 for start in group]
        rows.append(
            [
                task, _start(group[0].arm), str(len(group)), f"{fmean(start.boundary.value for start in group):.3f}",
                f"{fmean(prompts):.0f}", f"{fmean(used for used, *_ in replays):.0f}", f"{fmean(seconds):.0f}",
                f"{fmean(sequential):.0f}", str(sum(not decided for _, decided, _ in replays)),
                str(sum(side != fixed for (*_, side), fixed in zip(replays, fixed_sides, strict=True))),
            ]
        )  # fmt: skip
    header = (
        "task", "start", "seeds", "score", "prompts, fixed", "sequential", "seconds, fixed", "sequential",
        "undecided", "other side than fixed",
    )  # fmt: skip
    note = f"Sequential: a look every {LOOK_EVERY} prompts, alpha 0.05; its seconds are in proportion to its prompts."
    return Table("Cost of a measurement", note, header, rows)


def replay(start: Start) -> tuple[int, bool, bool]:
    """Returns (prompts used, decided, on-policy side) of a sequential measurement of the same prompts."""
    test = SequentialTest(alpha=0.05)
    votes = start.votes
    used = 0
    while used < len(votes) and not test.decided:
        batch = votes[used : used + LOOK_EVERY]
        test.update([share for prompt_votes in batch if (share := prompt_votes.share) is not None])
        used += len(batch)
    return used, test.decided, test.score >= 0.5


def all_tables(records: Mapping[Arm, Record]) -> list[Table]:
    """Computes all tables of the report."""
    wins = read_forks(records, "win")
    scores = read_forks(records, "score")
    return [
        forks_table(wins, "win"), forks_table(scores, "score"),
        how_often_right(wins, "win"), how_often_right(scores, "score"),
        *crossing_tables(wins, scores),
        predictors_table(wins, "win"), predictors_table(scores, "score"),
        selectors_table(records, "win"), selectors_table(records, "score"),
        *run_tables(read_runs(records)),
        variants_table(records, "win"), variants_table(records, "score"),
        measuring_table(records), each_fork_table(wins),
    ]  # fmt: skip


def crossing_tables(wins: Sequence[Fork], scores: Sequence[Fork]) -> list[Table]:
    """Where the better source changes, and how often decided measurements are right."""
    if not wins:
        return []
    points = all_points({"win": wins, "mean score": scores})
    by_votes = {name: group for name, group in points.items() if name.startswith("votes")}
    return [crossing_table(points), decided_table(by_votes)]


def _right(fork: Fork) -> bool:
    return (published(fork.start) > 0) == fork.on_pays


def _clear(fork: Fork) -> bool:
    difference = fork.difference
    return not math.isnan(difference.low) and not difference.low <= 0 <= difference.high


def _larger(fork: Fork) -> str:
    return {None: "equal", True: "on", False: "off"}[fork.on_pays] + ("" if _clear(fork) else " (unclear)")


def _start(arm: Arm) -> str:
    return "base" if not arm.start else f"after {' + '.join(arm.start)}"
