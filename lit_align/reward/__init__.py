"""A reward model of one's own: trained on preference pairs, saved for `RewardModelJudge`."""

from lit_align.reward.data import RewardDataModule
from lit_align.reward.loss import bradley_terry_loss
from lit_align.reward.module import RewardModule

__all__ = ["RewardDataModule", "RewardModule", "bradley_terry_loss"]
