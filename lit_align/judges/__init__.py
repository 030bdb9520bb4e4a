"""Judges: who wins? Rules, recorded scores, reward models."""

from lit_align.judges.base import Comparison, Judge, PairwiseJudge, PointwiseJudge
from lit_align.judges.recorded import RecordedScores
from lit_align.judges.reward_model import RewardModelJudge
from lit_align.judges.rule import RuleJudge

__all__ = [
    "Comparison",
    "Judge",
    "PairwiseJudge",
    "PointwiseJudge",
    "RecordedScores",
    "RewardModelJudge",
    "RuleJudge",
]
