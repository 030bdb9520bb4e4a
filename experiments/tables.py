"""The tables of the report, each from records alone, as rows of text under a header."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

from experiments.arm import Arm
from experiments.forks import (
    Fork,
    Gain,
    Gauge,
    Record,
    Start,
    measurements,
    read_forks,
    read_gain,
    read_start,
)
from experiments.predictors import Label, accuracy, all_predictors, pair_yield, published, ranking
from experiments.runs import curve, runs_of, shortest, stages, value_at
from experiments.stats import Estimate, mean_of, wilson
from lit_align.boundary import SequentialTest

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
BINS = (0.0, 0.05, 0.1, 0.2, 0.5)
LOOK_EVERY = 16
"""Prompts between two looks of the sequential test, as in the whole runs."""


class Table(NamedTuple):
    """A title, a sentence on how to read it, a header and rows."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join([f"### {self.title}", "", self.note, "", *("| " + " | ".join(line) + " |" for line in lines)])


def forks_table(forks: Sequence[Fork], gauge: Gauge) -> Table:
    """Table 1: one row for each task, starting point and loss, over seeds."""
    rows = []
    for (task, _, loss), some in _grouped(forks, lambda f: (f.start.arm.task, f.start.arm.start, f.loss)).items():
        before = [one.start.boundary for one in some]
        low, high = min(one.low for one in before), max(one.high for one in before)
        known = [one for one in some if one.on_pays is not None]
        rows.append(
            [
                task, _start(some[0].start.arm), loss, str(len(some)),
                f"{fmean(one.value for one in before):.3f} [{low:.2f}, {high:.2f}]",
                f"{fmean(one.off.mean for one in some):+.3f}", f"{fmean(one.on.mean for one in some):+.3f}",
                _signed(mean_of([one.difference.value for one in some])),
                f"{sum(bool(one.on_pays) for one in known)} of {len(known)}",
                f"{sum(_right(one) for one in known)} of {len(known)}",
                f"{fmean(pair_yield(one.start.on) for one in some):.2f}",
                f"{fmean(one.on.judged / one.on.pairs for one in some):.1f}",
            ]
        )  # fmt: skip
    header = (
        "task", "start", "loss", "seeds", "score before [lowest, highest end]", "gain off", "gain on", "on less off",
        "on larger", "score right", "prompts that give a pair", "judged answers a pair",
    )  # fmt: skip
    unit = "win rate against the start, less 0.5" if gauge == "win" else "mean score, less the start's"
    note = f"Gains in {unit}, on held-out prompts, from equally many pairs; intervals of 95 % over seeds."
    return Table(f"Table 1. What pays from here ({gauge})", note, header, rows)


def each_fork_table(forks: Sequence[Fork]) -> Table:
    """Every fork by itself."""
    rows = [
        [
            one.start.arm.task, str(one.start.arm.seed), _start(one.start.arm), one.loss,
            str(one.start.boundary),
            f"{one.off.mean:+.3f}", f"{one.on.mean:+.3f}", _signed(one.difference), _larger(one),
            {None: "-", True: "yes", False: "no"}[None if one.on_pays is None else _right(one)],
        ]
        for one in forks
    ]  # fmt: skip
    header = (
        "task",
        "seed",
        "start",
        "loss",
        "score before",
        "gain off",
        "gain on",
        "on less off",
        "larger",
        "score right",
    )
    return Table("Every fork", "Intervals of 95 % over prompts.", header, rows)


def how_often_right(forks: Sequence[Fork], gauge: Gauge) -> Table:
    """How often the score's side is the side that pays, and where."""
    known = [fork for fork in forks if fork.on_pays is not None]
    groups = {"all": known, "clear (0 outside the interval of the difference)": [f for f in known if _clear(f)]}
    for low, high in zip(BINS, BINS[1:], strict=False):
        end = high if high < BINS[-1] else math.inf
        groups[f"score {low:g} to {high:g} from 0.5"] = [f for f in known if low <= abs(published(f.start)) < end]
    groups |= {f"task {task}": some for task, some in _grouped(known, lambda f: f.start.arm.task).items()}
    groups |= {f"loss {loss}": some for loss, some in _grouped(known, lambda f: f.loss).items()}
    hits = {name: [_right(one) for one in some] for name, some in groups.items()}
    hits["all, had it always said off-policy"] = [not one.on_pays for one in known]
    hits["all, had it always said on-policy"] = [bool(one.on_pays) for one in known]
    rows = [[name, str(len(of)), str(sum(of)), str(wilson(sum(of), len(of)))] for name, of in hits.items()]
    note = (
        f"{len(forks) - len(known)} forks where both sources brought the same are left out. Wilson's intervals of "
        "95 %, as if forks were independent; the table of predictors has wider ones."
    )
    return Table(f"How often the score tells ({gauge})", note, ("forks", "number", "right", "share right"), rows)


def predictors_table(forks: Sequence[Fork], gauge: Gauge) -> Table:
    """Point 5: which cheap figure tells best."""
    if not forks:
        return Table(f"Predictors ({gauge})", "No fork is finished.", ("predictor",), [])
    labels: dict[str, Label] = {"pairs": lambda f: f.on_pays, "seconds": lambda f: f.on_pays_by_the_second}
    rows = []
    for name, predictor in all_predictors(forks).items():
        cells = [str(measure(predictor, label, forks)) for label in labels.values() for measure in (accuracy, ranking)]
        rows.append([name, *cells])
    header = ("predictor", *(f"{what}, equal {unit}" for unit in labels for what in ("right", "AUC")))
    note = (
        "Right: share of forks whose larger gain was foretold. AUC: the chance that a fork where on-policy pairs pay "
        "ranks above one where they do not; 0.5 is a guess. Bootstrap intervals of 95 % over trajectories (task, seed)."
    )
    return Table(f"Predictors ({gauge})", note, header, rows)


def selectors_table(records: Mapping[Arm, Record], gauge: Gauge) -> Table:
    """Table 2: diverse against good off-policy pairs."""
    rows = []
    diverse = [arm for arm in records if arm.selector == "diversity"]
    for (task, _), arms in _grouped(diverse, lambda arm: (arm.task, arm.start)).items():
        both = [found for arm in arms if (found := _beside_plain(arm, records, gauge)) is not None]
        if both:
            quality, diversity = ([one[side].mean for one in both] for side in (0, 1))
            difference = mean_of([b - a for a, b in zip(quality, diversity, strict=True)])
            rows.append(
                [task, _start(arms[0]), str(len(both)), f"{fmean(quality):+.3f}", f"{fmean(diversity):+.3f}",
                 _signed(difference)]
            )  # fmt: skip
    header = ("task", "start", "seeds", "gain, quality", "gain, diversity", "diversity less quality")
    note = (
        "Off-policy pairs on both sides, of the same candidates, from equally many pairs: best against worst, and the "
        "two most different. Intervals of 95 % over seeds."
    )
    return Table(f"Table 2. Diversity or quality ({gauge})", note, header, rows)


def _beside_plain(arm: Arm, records: Mapping[Arm, Record], gauge: Gauge) -> tuple[Gain, Gain] | None:
    """The gain of Table 1's arm that this one changes a selector or a setting of, and its own."""
    plain = replace(arm, selector="", variant="")
    scout = replace(plain, schedule="off")
    if plain not in records or scout not in records:
        return None
    start = read_start(scout, records[scout])
    return read_gain(records[plain], start, gauge), read_gain(records[arm], start, gauge)


def runs_table(records: Mapping[Arm, Record], gauge: Gauge) -> Table:
    """Table 3: whole runs."""
    rows = []
    for (task, schedule), arms in _grouped(runs_of(records), lambda arm: (arm.task, arm.schedule)).items():
        some = [records[arm] for arm in arms]
        curves = [curve(arm, records, gauge) for arm in arms]
        at = shortest(records, task)
        rounds = [one["rounds"] for one in some]
        measured = [measurements(one) for one in some]
        for_rounds = fmean(sum(r["candidates"] - r["reused"] for r in one) for one in rounds)
        to_measure = fmean(sum(2 * d["prompts"] for d in one) for one in measured)  # two answers a prompt
        verdicts = for_rounds + fmean(sum(map(_verdicts, one)) for one in measured)
        rows.append(
            [
                task, schedule, str(len(some)), _signed(mean_of([one[-1][1] for one in curves])),
                _signed(mean_of([value_at(one, at) for one in curves])),
                f"{for_rounds:.0f}", f"{to_measure:.0f}",
                f"{(for_rounds + to_measure) * some[0]['setup']['max_new_tokens']:,.0f}",
                f"{verdicts:.0f}",
                f"{fmean(curve[-1][0] for curve in curves):.0f}",
                f"{fmean(sum(r['sample_seconds'] + r['judge_seconds'] for r in one) for one in rounds):.0f}",
                f"{fmean(sum(d['seconds'] for d in one) for one in measured):.0f}",
                "; ".join(stages(one) for one in some),
            ]
        )  # fmt: skip
    header = (
        "task", "schedule", "seeds", "gain, equal pairs", "gain, equal seconds", "answers sampled for rounds",
        "to measure", "tokens, at most", "verdicts of the judge", "seconds", "of them rounds", "measuring",
        "on-policy share from step, each seed",
    )  # fmt: skip
    note = (
        "Gains as in Table 1 at the end of the run, and after as many seconds as the quickest run of the task took "
        "(between two evaluations in proportion). Evaluations are not in the seconds. Intervals of 95 % over seeds. A "
        "verdict is one answer's score, sampled or static; the answers of the rounds that look-ahead takes back, some "
        "128 for each measurement, are counted in its seconds only."
    )
    return Table(f"Table 3. Whole runs ({gauge})", note, header, rows)


def _verdicts(decision: Mapping[str, Any]) -> float:
    """The answers that a measurement had judged, of both sides."""
    sides = decision["characteristics"]
    return float(decision["prompts"] * (sides["on_policy"]["candidates"] + sides["off_policy"]["candidates"]))


def variants_table(records: Mapping[Arm, Record], gauge: Gauge) -> Table:
    """Table 4: on-policy forks with one setting changed."""
    rows = []
    varied = [arm for arm in records if arm.variant]
    for (task, variant), arms in _grouped(varied, lambda arm: (arm.task, arm.variant)).items():
        both = [found for arm in arms if (found := _beside_plain(arm, records, gauge)) is not None]
        if both:
            plain, changed = ([one[side] for one in both] for side in (0, 1))
            difference = mean_of([b.mean - a.mean for a, b in both])
            rows.append(
                [task, variant, str(len(both)), f"{fmean(one.mean for one in plain):+.3f}",
                 f"{fmean(one.mean for one in changed):+.3f}", _signed(difference),
                 f"{fmean(one.judged / one.pairs for one in changed):.1f}",
                 f"{fmean(one.seconds for one in changed):.0f} ({fmean(one.seconds for one in plain):.0f})"]
            )  # fmt: skip
    header = ("task", "variant", "seeds", "gain, plain", "gain", "difference", "judged answers a pair", "seconds")
    note = (
        "On-policy pairs from the base model after one injection; plain: 4 answers at temperature 0.7, rounds of 32 "
        "prompts, the reference is the start. Intervals of 95 % over seeds; in brackets the plain arm's seconds."
    )
    return Table(f"Table 4. Settings of the on-policy stage ({gauge})", note, header, rows)


def measuring_table(records: Mapping[Arm, Record]) -> Table:
    """Point 6: the sequential test replayed on the prompts of each fixed measurement."""
    starts = [read_start(arm, record) for arm, record in records.items() if arm.scouts]
    rows = []
    for (task, _), some in _grouped(starts, lambda one: (one.arm.task, one.arm.start)).items():
        replays = [replay(one) for one in some]
        fixed = [len(one.on) for one in some]
        seconds = [one.decision.seconds or 0.0 for one in some]
        spent = [s * used / n for s, (used, *_), n in zip(seconds, replays, fixed, strict=True)]
        rows.append(
            [
                task, _start(some[0].arm), str(len(some)), f"{fmean(one.boundary.value for one in some):.3f}",
                f"{fmean(fixed):.0f}", f"{fmean(used for used, *_ in replays):.0f}", f"{fmean(seconds):.0f}",
                f"{fmean(spent):.0f}", str(sum(not decided for _, decided, _ in replays)),
                str(sum(side != (published(one) >= 0) for one, (_, _, side) in zip(some, replays, strict=True))),
            ]
        )  # fmt: skip
    header = (
        "task", "start", "seeds", "score", "prompts, fixed", "sequential", "seconds, fixed", "sequential",
        "undecided", "other side than fixed",
    )  # fmt: skip
    note = f"Sequential: a look every {LOOK_EVERY} prompts, alpha 0.05; its seconds are in proportion to its prompts."
    return Table("Cost of a measurement", note, header, rows)


def replay(start: Start) -> tuple[int, bool, bool]:
    """(prompts used, decided, on-policy side) had the measurement been sequential."""
    test, votes = SequentialTest(alpha=0.05), start.votes
    for at in range(0, len(votes), LOOK_EVERY):
        test.update([share for one in votes[at : at + LOOK_EVERY] if (share := one.share) is not None])
        if test.decided:
            break
    return min(at + LOOK_EVERY, len(votes)), test.decided, test.score >= 0.5


def all_tables(records: Mapping[Arm, Record]) -> list[Table]:
    """Everything that can be said from these records."""
    wins, scores = read_forks(records, "win"), read_forks(records, "score")
    return [
        forks_table(wins, "win"), forks_table(scores, "score"),
        how_often_right(wins, "win"), how_often_right(scores, "score"),
        predictors_table(wins, "win"), predictors_table(scores, "score"),
        selectors_table(records, "win"), selectors_table(records, "score"),
        runs_table(records, "win"), runs_table(records, "score"),
        variants_table(records, "win"), variants_table(records, "score"),
        measuring_table(records), each_fork_table(wins),
    ]  # fmt: skip


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _right(fork: Fork) -> bool:
    return (published(fork.start) > 0) == fork.on_pays


def _clear(fork: Fork) -> bool:
    difference = fork.difference
    return not math.isnan(difference.low) and not difference.low <= 0 <= difference.high


def _larger(fork: Fork) -> str:
    return {None: "equal", True: "on", False: "off"}[fork.on_pays] + ("" if _clear(fork) else " (unclear)")


def _start(arm: Arm) -> str:
    return "base" if not arm.start else f"after {' + '.join(arm.start)}"


def _signed(one: Estimate) -> str:
    return f"{one.value:+.3f}" + ("" if math.isnan(one.low) else f" [{one.low:+.3f}, {one.high:+.3f}]")
