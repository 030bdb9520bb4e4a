"""The evaluation of a trained model: win rates by a judge, other programs' formats, and capability tasks."""

from lit_align.evaluate.judged import JudgedAnswers, judge_answers
from lit_align.evaluate.length_control import LengthControlled, control_length
from lit_align.evaluate.run import (
    Evaluation,
    EvaluationSettings,
    Opponent,
    evaluate_run,
    find_opponent,
    write_evaluation,
)
from lit_align.evaluate.tasks import TaskChange, TaskSettings, run_tasks
from lit_align.evaluate.win_rate import WinRate, win_rate_of, win_rates_by_category

__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "JudgedAnswers",
    "LengthControlled",
    "Opponent",
    "TaskChange",
    "TaskSettings",
    "WinRate",
    "control_length",
    "evaluate_run",
    "find_opponent",
    "judge_answers",
    "run_tasks",
    "win_rate_of",
    "win_rates_by_category",
    "write_evaluation",
]
