"""Losses over preference pairs: pure functions, modules around them, and the contract for one's own."""

from lit_align.losses.functional import dpo_loss, log_ratio_margin, rso_hinge_loss, slic_hf_loss
from lit_align.losses.modules import DPO, RSOHinge, SLiCHF
from lit_align.losses.types import LossOutput, PairLogps, PreferenceLoss

__all__ = [
    "DPO",
    "LossOutput",
    "PairLogps",
    "PreferenceLoss",
    "RSOHinge",
    "SLiCHF",
    "dpo_loss",
    "log_ratio_margin",
    "rso_hinge_loss",
    "slic_hf_loss",
]
