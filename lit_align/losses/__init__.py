"""Losses over preference pairs: pure functions, modules around them, and the interface for your own loss.

Notation: x prompt, w chosen, l rejected completion, y either, |y| its tokens, pi the policy, ref the reference.
Log-probs are sums over completion tokens in nats; every function and module returns one loss per pair, [B].
"""

from lit_align.losses.aot import AOT, AOTUnpaired, aot_loss
from lit_align.losses.apo import APODown, APOZero, apo_down_loss, apo_zero_loss
from lit_align.losses.base import LogRatioLoss, smoothed_sigmoid_loss
from lit_align.losses.bco import BCO, bco_loss
from lit_align.losses.combine import RPO, WeightedSum
from lit_align.losses.discopop import DiscoPOP, discopop_loss
from lit_align.losses.dpo import DPO, LengthNormalizedDPO, RobustDPO, dpo_loss, robust_dpo_loss
from lit_align.losses.exo import EXO, exo_loss
from lit_align.losses.fdpo import (
    FDPO,
    AlphaDivergence,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    f_dpo_loss,
)
from lit_align.losses.hinge import RSOHinge, SLiCHF, rso_hinge_loss, slic_hf_loss
from lit_align.losses.ipo import IPO, ipo_loss
from lit_align.losses.nca import NCA, nca_loss
from lit_align.losses.nll import NLL, nll_loss
from lit_align.losses.reference_free import CPO, ORPO, SimPO, cpo_loss, orpo_loss, simpo_loss
from lit_align.losses.sppo import SPPO, SoftSPPO, sppo_loss
from lit_align.losses.types import LossOutput, PairLogps, PairTokens, PreferenceLoss
from lit_align.losses.weighting import LDDPO, WPO, length_desensitized_sum, wpo_weights

__all__ = [
    "AOT",
    "BCO",
    "CPO",
    "DPO",
    "EXO",
    "FDPO",
    "IPO",
    "LDDPO",
    "NCA",
    "NLL",
    "ORPO",
    "RPO",
    "SPPO",
    "WPO",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "AlphaDivergence",
    "DiscoPOP",
    "Divergence",
    "ForwardKL",
    "JensenShannon",
    "LengthNormalizedDPO",
    "LogRatioLoss",
    "LossOutput",
    "PairLogps",
    "PairTokens",
    "PreferenceLoss",
    "RSOHinge",
    "ReverseKL",
    "RobustDPO",
    "SLiCHF",
    "SimPO",
    "SoftSPPO",
    "WeightedSum",
    "aot_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "bco_loss",
    "cpo_loss",
    "discopop_loss",
    "dpo_loss",
    "exo_loss",
    "f_dpo_loss",
    "ipo_loss",
    "length_desensitized_sum",
    "nca_loss",
    "nll_loss",
    "orpo_loss",
    "robust_dpo_loss",
    "rso_hinge_loss",
    "simpo_loss",
    "slic_hf_loss",
    "smoothed_sigmoid_loss",
    "sppo_loss",
    "wpo_weights",
]
