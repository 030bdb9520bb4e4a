"""Judges decide which answer wins: rules, recorded scores, reward models, PairRM, chat models, combinations."""

from lit_align.judges.base import Comparison, Judge, PairwiseJudge, PointwiseJudge
from lit_align.judges.cache import CachedJudge
from lit_align.judges.chat import ChatJudge
from lit_align.judges.combined import CombinedJudge, JudgePart
from lit_align.judges.pairrm import PairRM
from lit_align.judges.recorded import RecordedScores
from lit_align.judges.reward_model import RewardModelJudge
from lit_align.judges.rule import RuleJudge

__all__ = [
    "CachedJudge",
    "ChatJudge",
    "CombinedJudge",
    "Comparison",
    "Judge",
    "JudgePart",
    "PairRM",
    "PairwiseJudge",
    "PointwiseJudge",
    "RecordedScores",
    "RewardModelJudge",
    "RuleJudge",
]
