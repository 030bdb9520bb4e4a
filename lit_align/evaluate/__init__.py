"""The evaluation of a trained model: win rates by a judge, other programs' formats, and capability tasks."""

from lit_align.evaluate.judged import JudgedAnswers, judge_answers
from lit_align.evaluate.length_control import LengthControlled, control_length
from lit_align.evaluate.win_rate import WinRate, win_rate_of, win_rates_by_category

__all__ = [
    "JudgedAnswers",
    "LengthControlled",
    "WinRate",
    "control_length",
    "judge_answers",
    "win_rate_of",
    "win_rates_by_category",
]
