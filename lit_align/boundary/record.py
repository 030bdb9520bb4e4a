"""The traces of a decision: lines in files, numbers and tables in the loggers, a line on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from lit_align import run_folder
from lit_align.boundary.result import Decision
from lit_align.boundary.votes import JudgedPrompt
from lit_align.console import note, progress_style
from lit_align.loggers import log_histogram, log_score_chart, log_table
from lit_align.records import CandidateSet, Stage, prompt_text
from lit_align.run_parts import is_trial

STOPPED = {"budget": ", max_prompts", "pool": ", all there are", "decided": ""}
"""Why there were no more prompts, where the stage is undecided."""
COLUMNS = ("step", "stage", "on_policy_share", "score", "low", "high", "prompts", "seconds", "reason")
"""Of the table of decisions."""
Row = Mapping[str, Any]


def keep(trainer: Trainer, history: Sequence[Decision], judged: Sequence[JudgedPrompt], samples_to_keep: int) -> None:
    """Tells people and loggers of the last decision, and writes its lines.

    Args:
        trainer: of the run.
        history: all decisions, the last one included.
        judged: the prompts of its measurement.
        samples_to_keep: how many of them are kept with their answers.
    """
    decision = history[-1]
    note(readable_in_two(decision) if progress_style() == "bar" else readable(decision))
    if decision.judge_warning is not None and not any(earlier.judge_warning for earlier in history[:-1]):
        note(f"The judge: {decision.judge_warning}")
    if is_trial(trainer):
        return
    folder = Path(trainer.default_root_dir)
    write_decisions(folder, history)
    log_decision(trainer.loggers, decision)
    log_history(trainer.loggers, history)
    log_distributions(trainer.loggers, judged, decision.step)
    rows = sample_rows(decision.step, judged[:samples_to_keep])
    if rows:
        write_samples(folder, rows, history)
        log_samples(trainer.loggers, rows, decision.step)


def write_decisions(folder: Path, history: Sequence[Decision]) -> None:
    """Writes all decisions to `boundary.jsonl`, so that a resumed run repeats no line and loses none."""
    run_folder.write_jsonl(folder / run_folder.DECISIONS, [decision.record() for decision in history])


def write_samples(folder: Path, rows: Sequence[Row], history: Sequence[Decision]) -> None:
    """Adds `rows` to `samples.jsonl` and drops what a run that was cut off had added after `history`."""
    path = folder / run_folder.SAMPLES
    earlier = {decision.step for decision in history} - {row["step"] for row in rows}
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    run_folder.write_jsonl(path, [row for row in written if row["step"] in earlier] + list(rows))


def sample_rows(step: int, judged: Sequence[JudgedPrompt]) -> list[dict[str, Any]]:
    """One row for each prompt: sampled and static candidates beside their scores (None: the judge abstained)."""
    return [
        {
            "step": step,
            "prompt": prompt_text(prompt.on.prompt),
            "on_policy": _answers(prompt.on),
            "off_policy": _answers(prompt.off),
        }
        for prompt in judged
    ]


def _answers(candidates: CandidateSet) -> list[dict[str, Any]]:
    return [{"text": candidate.text, "score": candidate.score} for candidate in candidates.candidates]


def log_decision(loggers: Iterable[Logger], decision: Decision) -> None:
    """Logs the numbers of a decision.

    They are `boundary/score`, `boundary/stage` (0 injection, 1 fine-tuning), `boundary/decided` (0 or 1) and so
    on, and each side's characteristics as `boundary/on_policy/<name>` and `boundary/off_policy/<name>`.
    """
    numbers = {name: value for name, value in decision.record().items() if isinstance(value, int | float)}
    del numbers["step"]
    for setting in ("graded", "threshold"):
        numbers.pop(setting, None)
    numbers["stage"] = decision.stage == Stage.FINE_TUNING.value
    if decision.measured:
        numbers["decided"] = decision.decided
    for side, figures in (decision.characteristics or {}).items():
        numbers |= {f"{side}/{name}": value for name, value in figures.items()}
    for logger in loggers:
        logger.log_metrics({f"boundary/{name}": float(value) for name, value in numbers.items()}, step=decision.step)


def log_history(loggers: Sequence[Logger], history: Sequence[Decision]) -> None:
    """Gives all decisions as a table, and the measured scores as a chart, to the loggers that can show them."""
    records = [decision.record() for decision in history]
    log_table(
        loggers, "boundary/decisions", COLUMNS, [[row[name] for name in COLUMNS] for row in records], history[-1].step
    )
    results = {decision.step: decision.result for decision in history if decision.result is not None}
    if results:
        scores = [(result.score, result.low, result.high) for result in results.values()]
        log_score_chart(
            loggers,
            "boundary/score",
            "boundary score",
            list(results),
            scores,
            next(reversed(results.values())).threshold,
        )


def log_distributions(loggers: Sequence[Logger], judged: Sequence[JudgedPrompt], step: int) -> None:
    """Gives histograms of a measurement to the loggers that can show them: scores of both sides, shares of votes."""
    log_histogram(loggers, "boundary/vote_shares", [prompt.votes.share for prompt in judged], step)
    for side, sets in (("on_policy", [p.on for p in judged]), ("off_policy", [p.off for p in judged])):
        scores = chain.from_iterable([candidate.score for candidate in one.candidates] for one in sets)
        log_histogram(loggers, f"boundary/{side}/scores", scores, step)


def log_samples(loggers: Iterable[Logger], rows: Sequence[Row], step: int) -> None:
    """Gives the samples as a table to the loggers that can show one."""
    columns = ["prompt", "side", "score", "answer"]
    table: list[list[Any]] = []
    for row in rows:
        for side in ("on_policy", "off_policy"):
            table += [[row["prompt"], side, answer["score"], answer["text"]] for answer in row[side]]
    log_table(loggers, "boundary/samples", columns, table, step)


def readable(decision: Decision) -> str:
    """A decision as a line for people: the stage and the score, and the reason behind it."""
    return f"boundary: {_describe_stage(decision)}{_describe_score(decision)} | {_describe_reason(decision)}"


def readable_in_two(decision: Decision) -> str:
    """The same in two lines, for a terminal."""
    return f"{_describe_stage(decision)}{_describe_score(decision)}\n  {_describe_reason(decision)}"


def _describe_stage(decision: Decision) -> str:
    stage = decision.stage.replace("_", "-")
    return f"step {decision.step} | {stage}, {100 * decision.on_policy_share:.0f} % on-policy"


def _describe_score(decision: Decision) -> str:
    if not decision.measured:
        return ""
    score = "graded score" if decision.graded else "score"
    return f" | {score} {decision.score:.2f} [{decision.low:.2f}, {decision.high:.2f}], {decision.prompts} prompts"


def _describe_reason(decision: Decision) -> str:
    if not decision.measured:
        return decision.reason
    why = "" if decision.decided or decision.stopped is None else STOPPED[decision.stopped]
    return f"{decision.reason} ({decision.seconds:.0f} s{why})"
