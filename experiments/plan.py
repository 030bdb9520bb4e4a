"""Which arms each table needs, in the order in which they are run, and what they are expected to cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from experiments.arm import SCHEDULES, VARIANTS, Arm, Setup

STARTS: tuple[tuple[str, ...], ...] = ((), ("off",), ("off", "off"))
"""From weak to aligned: the base model, and after one and two injections of `fork_steps` off-policy steps each."""
FORKS = {
    "constraints": ("rpo", "dpo", "slic"),
    "lists": ("rpo", "dpo", "slic"),
    "constraints-yes-no": ("rpo",),
    "constraints-coin": ("rpo",),
}
"""Tasks of Table 1 with the losses of their forks."""
RUNS = ("constraints",)
"""Tasks of Tables 3 and 4."""
STEP_SECONDS, ANSWER_SECONDS, LOADING_SECONDS = 1.7, 0.08, 7.0
"""On one core of two that are both busy with arms. They weigh the arms in the progress bar."""


def table1(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """Off-policy and on-policy forks from each starting point."""
    return [
        Arm(task, seed, start, source, setup.fork_steps, loss)
        for seed in seeds
        for task, losses in FORKS.items()
        for start in STARTS
        for loss in losses
        for source in ("off", "on")
    ]


def table2(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """Diverse pairs at the weakest and the strongest start; the pairs of high quality are Table 1's off-policy ones."""
    weak, strong = STARTS[0], STARTS[-1]
    tasks = [task for task in ("constraints", "lists") if task in FORKS]
    return [
        Arm(task, seed, start, "off", setup.fork_steps, selector=selector)
        for seed in seeds
        for task in tasks
        for start in (weak, strong)
        for selector in ("", "diversity")
    ]


def table3(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """Whole runs from the base model, one for each schedule; and Table 1's first scouts, which evaluate the start."""
    return [
        arm
        for seed in seeds
        for task in RUNS
        for arm in (
            Arm(task, seed, (), "off", setup.fork_steps),
            *(Arm(task, seed, (), name, setup.run_steps, evaluate_every=setup.every_n_steps) for name in SCHEDULES),
        )
    ]


def table4(setup: Setup, seeds: Sequence[int]) -> list[Arm]:
    """On-policy forks from where the stages meet, each with one setting changed; and Table 1's to compare with."""
    start = STARTS[1]
    return [
        arm
        for seed in seeds
        for task in RUNS
        for arm in (
            Arm(task, seed, start, "off", setup.fork_steps),
            *(Arm(task, seed, start, "on", setup.fork_steps, variant=variant) for variant in ("", *VARIANTS)),
        )
    ]


TABLES: dict[str, Callable[[Setup, Sequence[int]], list[Arm]]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
}


def with_parents(arms: Iterable[Arm]) -> list[Arm]:
    """The arms, each once and after the arm that makes its starting point."""
    ordered: dict[Arm, None] = {}
    for arm in arms:
        line = [arm]
        while (parent := line[-1].parent) is not None:
            line.append(parent)
        ordered.update(dict.fromkeys(reversed(line)))
    return list(ordered)


def saves_adapter(arm: Arm) -> bool:
    """Whether other arms start where this one ends."""
    return arm.scouts and (*arm.start, arm.schedule) in STARTS


def expected_seconds(arm: Arm, setup: Setup) -> float:
    """On one core of the machine that README.md speaks of."""
    evaluations = (arm.steps // arm.evaluate_every if arm.evaluate_every else 1) + arm.scouts
    answers = evaluations * setup.evaluation_prompts
    if arm.scouts:
        answers += setup.fork_prompts * setup.answers
    if arm.schedule != "off":  # about one pair a prompt, in half of a mixed run
        answers += arm.steps * setup.batch_size * setup.answers // (1 if arm.schedule == "on" else 2)
    return LOADING_SECONDS + arm.steps * STEP_SECONDS + answers * ANSWER_SECONDS
