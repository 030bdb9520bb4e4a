"""`lit-align evaluate`: how good is what a fit left?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Imported for their names: jsonargparse finds by its short name any class that is imported.
import lit_align.judges
import lit_align.reward
import lit_align.sampling  # noqa: F401
from lit_align import run_folder
from lit_align.cli.data_parser import data_parser, instantiate
from lit_align.cli.errors import UsageError
from lit_align.cli.keys import AcceptedKeys, refuse_unknown_keys
from lit_align.cli.parser import Parser
from lit_align.cli.words import hints_at_base
from lit_align.console import note
from lit_align.data import AlignmentDataModule
from lit_align.evaluate.run import (
    BASE,
    EvaluationSettings,
    evaluate_run,
    find_opponent,
    free_folder,
    write_evaluation,
)
from lit_align.evaluate.tasks import TaskSettings, run_tasks
from lit_align.judges import Judge
from lit_align.report.evaluation import readable, readable_tasks
from lit_align.run_folder import write_json
from lit_align.sampling import Sampler, TransformersSampler
from lit_align.trained import TrainedRun, open_run

DESCRIPTION = (
    "Compares what a fit left with its start, with another run or with a file of answers, by a judge, on prompts that "
    "the run has not seen. A run's own data, judge and sampler count unless others are given."
)


def run(args: Sequence[str]) -> None:
    """Parses the arguments of `evaluate`, evaluates, prints and writes the result."""
    trained, base, others = _take_run(list(args))
    parser = _parser(with_data=trained is None or trained.data is not None)
    if trained is None:
        if {"-h", "--help"} & set(others):
            parser.parse_args(others)  # ends here
        raise UsageError("evaluate needs --run RUN: a run folder, a checkpoint or a model folder")
    config = _parse(parser, trained, others)
    output = free_folder(trained, config.against) if config.output is None else Path(config.output)
    if output.exists():
        raise FileExistsError(f"{output} is there already, and nothing is overwritten: choose another --output")
    settings = _settings(config, trained) if config.win_rate else None
    tasks = _task_settings(config)
    if settings is None and tasks is None:
        raise UsageError("there is nothing to do: --win_rate false leaves the tasks, and there are no --tasks")
    opponent = find_opponent(config.against)
    opponent = opponent._replace(data=_data_of(opponent.run))
    with hints_at_base(base):
        policy = trained.load()
    blocks: list[str | None] = []
    if settings is not None:
        evaluation = evaluate_run(trained, policy, getattr(config, "data", None), opponent, settings)
        write_evaluation(output, evaluation)
        blocks += [readable(evaluation), settings.judge.report()]
    if tasks is not None:
        changes = run_tasks(policy, tasks)
        write_json(output / run_folder.TASKS, {"settings": asdict(tasks), "tasks": list(map(asdict, changes))})
        blocks += [readable_tasks(changes)]
    note("\n".join([*filter(None, blocks), f"Outputs: {output}"]))


def _take_run(args: list[str]) -> tuple[TrainedRun | None, str | None, list[str]]:
    """Takes the run and its base out of the words: the run's configuration decides what the other words mean."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--run")
    first.add_argument("--base")
    named, others = first.parse_known_args(args)
    if named.run is None and others and not others[0].startswith("-"):
        named.run = others.pop(0)
    return (None if named.run is None else open_run(named.run, named.base)), named.base, others


def _parse(parser: Parser, trained: TrainedRun, args: list[str]) -> Any:
    words = args
    if trained.data is not None and trained.root is not None:
        words = ["--config", str(trained.root / run_folder.CONFIG), *args]
    _refuse_arguments_without_class(args)
    refuse_unknown_keys(AcceptedKeys.of(parser), words)
    return instantiate(parser, parser.parse_args(words))


def _refuse_arguments_without_class(args: list[str]) -> None:
    """Refuses arguments of a judge or a sampler that is not named: the run's own is set in its data."""
    named = {word.partition("=")[0] for word in args}
    for part in ("judge", "sampler"):
        argument = next((word for word in sorted(named) if word.startswith(f"--{part}.")), None)
        if argument is not None and f"--{part}" not in named and argument != f"--{part}.help":
            raise UsageError(
                f"`{argument}` sets something of a {part} that is not named: --{part} CLASS names one, and "
                f"--data.{argument.removeprefix('--')} sets it for the run's own"
            )


def _data_of(other: TrainedRun | None) -> AlignmentDataModule | None:
    """The data of another run, to leave out what it was trained on."""
    if other is None or other.data is None or other.root is None:
        return None
    parser = data_parser("lit-align evaluate", DESCRIPTION)
    data: AlignmentDataModule = instantiate(
        parser, parser.parse_args(["--config", str(other.root / run_folder.CONFIG)])
    ).data
    return data


def _task_settings(config: Any) -> TaskSettings | None:
    names = [name.strip() for name in (config.tasks or "").split(",") if name.strip()]
    if not names:
        return None
    return TaskSettings(names, config.task_folder, config.num_fewshot, config.limit, config.apply_chat_template)


def _settings(config: Any, trained: TrainedRun) -> EvaluationSettings:
    data = getattr(config, "data", None)
    judge = config.judge or getattr(data, "judge", None)
    if judge is None:
        raise UsageError(f"nobody judges: {trained.name} comes without a judge, so give one with --judge")
    sampler = config.sampler or getattr(data, "sampler", None) or TransformersSampler()
    return EvaluationSettings(
        judge,
        sampler,
        own_judge=config.judge is None,
        prompts=config.prompts,
        max_prompts=config.max_prompts,
        category=config.category,
        confidence=config.confidence,
        seed=config.seed,
    )


def _parser(with_data: bool) -> Parser:
    parser = data_parser("lit-align evaluate", DESCRIPTION, with_data)
    parser.add_argument("--run", type=str | None, default=None, help="run folder, checkpoint or model folder")
    parser.add_argument("--base", type=str | None, default=None, help="the base to load, if it has moved since")
    parser.add_argument(
        "--against", type=str, default=BASE, help="base (the start of the fit), another run, or a file of answers"
    )
    parser.add_argument("--judge", type=Judge | None, default=None, help="who compares, in place of the run's own")
    parser.add_argument(
        "--sampler", type=Sampler | None, default=None, help="how both answer; as in the run by default"
    )
    parser.add_argument(
        "--prompts",
        type=str | None,
        default=None,
        help="file of prompts, in place of the held-out ones of the run's data; those that it trained on are left out",
    )
    parser.add_argument("--max_prompts", type=int | None, default=512, help="prompts at most, drawn by the seed")
    parser.add_argument("--category", type=str, default="category", help="column of the rows with a prompt's category")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals, in (0, 1)")
    parser.add_argument("--seed", type=int, default=0, help="draws the prompts and the answers")
    parser.add_argument("--win_rate", type=bool, default=True, help="false runs the tasks alone")
    parser.add_argument(
        "--tasks",
        type=str | None,
        default=None,
        help="tasks of lm-evaluation-harness (extra lm-eval), by commas, to run on the policy and on its start",
    )
    parser.add_argument("--task_folder", type=str | None, default=None, help="folder of YAML tasks of your own")
    parser.add_argument("--num_fewshot", type=int | None, default=None, help="examples before a question of a task")
    parser.add_argument("--limit", type=int | None, default=None, help="questions a task at most")
    parser.add_argument("--apply_chat_template", type=bool, default=False, help="ask tasks by the chat template")
    parser.add_argument(
        "--output", type=str | None, default=None, help="new folder to write; by default one in the run folder"
    )
    return parser
