"""Lists the arms that each table needs, in the order in which they run, and estimates their time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, product

from experiments.arm import Arm
from experiments.schedules import SCHEDULES
from experiments.setup import LENGTHS, VARIANTS, Setup

STARTS: tuple[tuple[str, ...], ...] = ((), ("off",), ("off", "off"))
"""From weak to aligned: the base model, and the policy after one and two injections of `fork_steps` steps."""
FORKS = {
    "constraints": ("rpo", "dpo", "slic"),
    "lists": ("rpo", "dpo", "slic"),
    "constraints-yes-no": ("rpo",),
    "constraints-coin": ("rpo",),
}
"""Tasks of Table 1 with the losses of their forks."""
ON_THREE_SEEDS = (
    "on-then-off", "alternating", "boundary", "hysteresis", "look-ahead", "mixture", "semi-online-2", "semi-online-32",
)  # fmt: skip
"""Schedules that Table 3 runs on no more than the first three seeds."""
SHORT_RUNS = [name for name in SCHEDULES if not name.startswith("follow-")]
"""Schedules of Table 3."""
LONG_RUNS = ("half", "off-then-on", "follow", "follow-5%", "follow-5%-fixed")
"""Schedules of Table 5."""
SAMPLED_RUNS = ("off", "half", "off-then-on", "follow")
"""Schedules of Table 6."""
RUNS = ("constraints",)
"""Tasks of Tables 3 to 5."""
STEP_SECONDS = 1.4
ANSWER_SECONDS = 0.065
LOADING_SECONDS = 6.0
"""Times on one core of two that both run arms. The progress bar weighs arms by them."""


def table1(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """Lists off-policy and on-policy forks from each starting point."""
    arms = []
    for seed, (task, losses) in product(seeds, FORKS.items()):
        for start, loss, source in product(STARTS, losses, ("off", "on")):
            arms.append(Arm(task, seed, start, source, setup.fork_steps, loss))
    return arms


def table2(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """Lists arms with diverse pairs at the weakest and the strongest start, and Table 1's to compare with."""
    settings = product(seeds, ("constraints", "lists"), (STARTS[0], STARTS[-1]), ("", "diversity"))
    return [
        Arm(task, seed, start, "off", setup.fork_steps, selector=selector) for seed, task, start, selector in settings
    ]


def table3(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """Lists whole runs from the base model, one per schedule, and Table 1's first scouts, which evaluate the start."""
    arms = []
    for seed, task in product(seeds, RUNS):
        run = Arm(task, seed, (), "off", setup.run_steps, evaluate_every=setup.every_n_steps)
        schedules = [name for name in SHORT_RUNS if seed < 3 or name not in ON_THREE_SEEDS]
        arms.append(Arm(task, seed, (), "off", setup.fork_steps))
        arms += [replace(run, schedule=schedule) for schedule in schedules]
        arms.append(replace(run, loss="wpo"))
    return arms


def table4(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """Lists on-policy forks after one injection, each with one setting changed, and Table 1's to compare with."""
    arms = []
    for seed, task in product(seeds, RUNS):
        arms.append(Arm(task, seed, STARTS[1], "off", setup.fork_steps))
        for variant in ("", *VARIANTS):
            arms.append(Arm(task, seed, STARTS[1], "on", setup.fork_steps, variant=variant))
    return arms


def table5(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """Lists runs of four times the length, and Table 1's first scouts, which evaluate the start."""
    arms = []
    for (length, changes), seed, task in product(LENGTHS.items(), seeds, RUNS):
        arms.append(Arm(task, seed, (), "off", setup.fork_steps))
        for schedule in LONG_RUNS:
            run = Arm(task, seed, (), schedule, changes["run_steps"], variant=length)
            arms.append(replace(run, evaluate_every=changes["every_n_steps"]))
    return arms


def table6(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """Lists forks and whole runs of the task whose static candidates are samples."""
    arms = []
    for seed in seeds:
        for start, source in product(STARTS, ("off", "on")):
            arms.append(Arm("arithmetic", seed, start, source, setup.fork_steps))
        for schedule in SAMPLED_RUNS:
            run = Arm("arithmetic", seed, (), schedule, setup.run_steps)
            arms.append(replace(run, evaluate_every=setup.every_n_steps))
    return arms


TABLES: dict[str, Callable[[Setup, Sequence[int]], list[Arm]]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
}


SEEDS = {"table3": 6}
"""The number of seeds of the tables that do not have three."""


def arms_of(tables: Iterable[str], setup: Setup, seeds: Sequence[int] | None = None) -> list[Arm]:
    """Lists the arms of some tables and those that make their starting points, each once.

    Args:
        tables: some of `TABLES`.
        setup: the settings that all arms share.
        seeds: the seeds of all tables; None takes each table's own.
    """
    arms = [TABLES[name](setup, range(SEEDS.get(name, 3)) if seeds is None else seeds) for name in tables]
    return with_parents(chain.from_iterable(arms))


def with_parents(arms: Iterable[Arm]) -> list[Arm]:
    """Lists the arms, each once and after the arm that makes its starting point."""
    ordered: dict[Arm, None] = {}
    for arm in arms:
        ancestors = [arm]
        while (parent := ancestors[-1].parent) is not None:
            ancestors.append(parent)
        ordered.update(dict.fromkeys(reversed(ancestors)))
    return list(ordered)


def saves_adapter(arm: Arm) -> bool:
    """Whether other arms start where this one ends, so that its adapter is saved."""
    return arm.scouts and (*arm.start, arm.schedule) in STARTS


def expected_seconds(arm: Arm, setup: Setup) -> float:
    """Estimates the seconds that an arm takes on one core of the machine described in README.md."""
    evaluations = (arm.steps // arm.evaluate_every if arm.evaluate_every else 1) + arm.scouts
    answers = evaluations * setup.evaluation_prompts
    if arm.scouts:
        answers += setup.fork_prompts * setup.answers
    if arm.schedule != "off":  # about one pair per prompt; in a mixed run about half of the steps
        answers += arm.steps * setup.batch_size * setup.answers // (1 if arm.schedule == "on" else 2)
    return LOADING_SECONDS + arm.steps * STEP_SECONDS + answers * ANSWER_SECONDS
