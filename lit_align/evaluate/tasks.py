"""What a win rate does not see: the tasks of lm-evaluation-harness, before and after a fit."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_align.trained import TrainedPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BOOTSTRAP = 1000  # draws, for metrics whose standard error has no closed form
_SAME = 1e-6


@dataclass(frozen=True)
class TaskSettings:
    """Which tasks to run, and how.

    Args:
        tasks: names of tasks, groups or tags of lm-evaluation-harness, or of YAML tasks in `folder`.
        folder: YAML tasks of one's own.
        num_fewshot: examples in front of each question; None takes each task's own number.
        limit: questions a task at most; None takes all.
        apply_chat_template: asks by the run's chat template.
        batch_size: rows a forward pass.
    """

    tasks: Sequence[str]
    folder: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    apply_chat_template: bool = False
    batch_size: int = 8


@dataclass(frozen=True)
class TaskChange:
    """A metric of a task, before and after.

    Args:
        task: its name.
        metric: the metric's name, with the filter if it has one.
        before: of the policy as the fit began.
        after: of the trained policy.
        difference: after minus before.
        standard_error: of the difference; None where the harness gives none.
        paired: whether that comes from the differences question by question, which cancels how hard each is.
        questions: how many were asked.
        higher_is_better: whether a higher value is better; None if the task does not say.
    """

    task: str
    metric: str
    before: float
    after: float
    difference: float
    standard_error: float | None
    paired: bool
    questions: int
    higher_is_better: bool | None

    @property
    def is_worse(self) -> bool:
        """Whether the trained policy is worse by more than two standard errors."""
        if self.standard_error is None or self.higher_is_better is None:
            return False
        lost = -self.difference if self.higher_is_better else self.difference
        return lost > 2 * self.standard_error


def run_tasks(policy: TrainedPolicy, settings: TaskSettings) -> list[TaskChange]:
    """Runs tasks on the trained policy and on the one that it started from.

    Raises:
        ImportError: lm-evaluation-harness is not installed.
        ValueError: there is no such task, or the start of the fit is not known.
    """
    run = _runner(settings)
    with policy.at_start() as start:
        before = run(start, policy.tokenizer)
    return compare_results(before, run(policy.model, policy.tokenizer))


def compare_results(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[TaskChange]:
    """Compares two results of `lm_eval.simple_evaluate` on the same tasks.

    A metric that is the mean of one number a question is compared question by question. Of any other, such as a
    perplexity or the mean of a group, the standard errors of both sides are added in squares.
    """
    changes: list[TaskChange] = []
    for task, values in after["results"].items():
        for key, value in values.items():
            name, _, kept = key.partition(",")
            earlier = before["results"].get(task, {}).get(key)
            if not kept or name.endswith("_stderr") or not _is_number(value) or not _is_number(earlier):
                continue
            differences = _paired(before, after, task, key)
            changes.append(
                TaskChange(
                    task,
                    name if kept == "none" else f"{name}, {kept}",
                    float(earlier),
                    float(value),
                    float(value) - float(earlier),
                    _standard_error(differences, before["results"][task], values, key),
                    differences is not None,
                    _questions(after, task),
                    after.get("higher_is_better", {}).get(task, {}).get(name),
                )
            )
    return changes


def _runner(settings: TaskSettings) -> Any:
    """A function of a model and a tokenizer that gives the harness's results."""
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            f"tasks are run by lm-evaluation-harness: pip install 'lit-align[lm-eval]' ({error})"
        ) from error
    tasks = None
    unknown = list(settings.tasks)
    if settings.folder is not None:  # the harness's own tasks take seconds to list
        tasks = TaskManager(include_path=settings.folder, include_defaults=False)
        unknown = _unknown(tasks, settings.tasks)
    if unknown:
        tasks = TaskManager(include_path=settings.folder)
        unknown = _unknown(tasks, settings.tasks)
    if unknown:
        raise ValueError(
            f"there is no task {', '.join(map(repr, unknown))}: `lm-eval ls tasks` lists those of the harness; YAML "
            "tasks of your own are found with --task_folder DIR"
        )

    def run(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Any:
        with _quiet():
            return lm_eval.simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size),
                tasks=list(settings.tasks),
                num_fewshot=settings.num_fewshot,
                limit=settings.limit,
                apply_chat_template=settings.apply_chat_template,
                bootstrap_iters=_BOOTSTRAP,
                task_manager=tasks,
            )

    return run


def _unknown(tasks: Any, names: Sequence[str]) -> list[str]:
    return [name for name in names if not tasks.match_tasks([name]) and not Path(name).is_file()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's remarks on a model that is loaded already."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _paired(before: Mapping[str, Any], after: Mapping[str, Any], task: str, key: str) -> list[float] | None:
    """The differences question by question; None where the metric is not the mean of one number a question."""
    sides = [_by_question(results, task, key) for results in (before, after)]
    earlier, later = sides
    if len(later) < 2 or earlier.keys() != later.keys():
        return None
    for results, values in zip((before, after), sides, strict=True):
        if abs(fmean(values.values()) - results["results"][task][key]) > _SAME:
            return None
    return [later[question] - earlier[question] for question in later]


def _by_question(results: Mapping[str, Any], task: str, key: str) -> dict[int, float]:
    name, _, kept = key.partition(",")
    samples = [sample for sample in results.get("samples", {}).get(task, ()) if sample.get("filter", "none") == kept]
    return {sample["doc_id"]: float(sample[name]) for sample in samples if _is_number(sample.get(name))}


def _standard_error(
    differences: Sequence[float] | None, before: Mapping[str, Any], after: Mapping[str, Any], key: str
) -> float | None:
    if differences is not None:
        return stdev(differences) / math.sqrt(len(differences))
    name, _, kept = key.partition(",")
    errors: list[Any] = [values.get(f"{name}_stderr,{kept}") for values in (before, after)]
    return math.hypot(*map(float, errors)) if all(map(_is_number, errors)) else None


def _questions(results: Mapping[str, Any], task: str) -> int:
    counts = results.get("n-samples", {}).get(task) or {}
    return int(counts.get("effective") or results["results"][task].get("sample_len") or 0)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str) and math.isfinite(value)
    except TypeError:
        return False
