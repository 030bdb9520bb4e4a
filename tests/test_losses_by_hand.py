"""Each loss against a number derived by hand."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import lit_align.losses as L
from lit_align.losses import PairTokens, PreferenceLoss
from tests.helpers.loss_cases import exported_losses, pairs


def tokens(*values: float) -> torch.Tensor:
    return torch.tensor([values])


# Log-ratios: chosen -1 - (-2) = 1, rejected -4 - (-3) = -1; their difference is 2. Lengths 2 and 4, target 7.
# The judge gives the chosen completion odds of 3 : 1.
PAIR = replace(
    pairs(
        [-1.0],
        [-4.0],
        [-2.0],
        [-3.0],
        [2],
        [4],
        policy_target_logps=[-7.0],
        margin=[math.log(3)],
        policy_chosen_collisions=[-1.0],
        policy_rejected_collisions=[-2.0],
    ),
    tokens=PairTokens(
        tokens(-0.25, -0.75),
        tokens(-1.0, -1.0, -1.0, -1.0),
        torch.ones(1, 2, dtype=torch.bool),
        torch.ones(1, 4, dtype=torch.bool),
        tokens(-1.0, -1.0),
        tokens(-1.5, -0.5, -0.5, -0.5),
    ),
)


def nls(z: float) -> float:
    """-log sigmoid(z)."""
    return math.log(1 + math.exp(-z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


HAND: list[tuple[Callable[[], PreferenceLoss], float]] = [
    (lambda: L.DPO(0.5), nls(1)),
    (lambda: L.DPO(0.5, label_smoothing=0.2), 0.8 * nls(1) + 0.2 * nls(-1)),
    (lambda: L.RobustDPO(0.5, label_smoothing=0.2), (0.8 * nls(1) - 0.2 * nls(-1)) / 0.6),
    (lambda: L.LengthNormalizedDPO(2.0), nls(2 * (1 / 2 + 1 / 4))),
    (lambda: L.IPO(0.5), (2 - 1) ** 2),
    (lambda: L.IPO(0.5, length_normalize=True), (1 / 2 + 1 / 4 - 1) ** 2),
    (lambda: L.EXO(0.5, label_smoothing=0.25), kl(sigmoid(1), 0.75)),
    (lambda: L.NCA(0.5), nls(0.5) + nls(-0.5) / 2 + nls(0.5) / 2),
    (lambda: L.BCO(0.5), nls(0.5) + nls(0.5)),
    (lambda: L.SPPO(0.25), (1 - 2) ** 2 + (-1 + 2) ** 2),
    (lambda: L.SoftSPPO(0.125), (1 - 0.25 / 0.125) ** 2 + (-1 + 0.25 / 0.125) ** 2),  # P = 3 / 4
    (lambda: L.SoftSPPO(0.25), 0.0),
    (lambda: L.AOT(0.5), nls(1)),
    (lambda: L.AOT(0.5, label_smoothing=0.2), 0.8 * nls(1) + 0.2 * nls(-1)),
    (lambda: L.AOTUnpaired(0.5), nls(1)),
    (lambda: L.APOZero(0.5), 1 - sigmoid(0.5) + sigmoid(-0.5)),
    (lambda: L.APODown(0.5), 1 + sigmoid(0.5) - sigmoid(1)),
    (lambda: L.DiscoPOP(0.5, tau=0.5), (1 - sigmoid(2)) * nls(1) + sigmoid(2) * math.exp(-1)),
    (lambda: L.FDPO(L.ReverseKL(), 0.5), nls(1)),
    (lambda: L.FDPO(L.ForwardKL(), 0.5), nls(0.5 * (math.e - 1 / math.e))),
    (lambda: L.FDPO(L.JensenShannon(), 0.5), nls(0.5)),  # log 2e / (1 + e) - log 2 / (e + 1) = 1
    (lambda: L.FDPO(L.AlphaDivergence(0.5), 0.5), nls(math.exp(0.5) - math.exp(-0.5))),
    (lambda: L.RSOHinge(0.25), 1 - 0.25 * 2),
    (lambda: L.RSOHinge(0.6), 0.0),  # beyond the margin
    (lambda: L.SLiCHF(delta=5.0, lambda_=0.5), 5 + 1 - 4 + 0.5 * 1),
    (lambda: L.SLiCHF(delta=2.0, lambda_=0.5), 0.5 * 1),  # 2 + 1 - 4 < 0
    (lambda: L.SLiCHF(delta=5.0, lambda_=0.5, target="row"), 5 + 1 - 4 + 0.5 * 7),
    (L.NLL, 1 / 2),
    (lambda: L.NLL(normalize="sum"), 1.0),
    (lambda: L.NLL(normalize="batch"), 1 / 2),
    (lambda: L.NLL(target="row"), 7 / 7),
    (lambda: L.SimPO(2.0, gamma=0.5), nls(2 * (-1 / 2 + 4 / 4) - 0.5)),
    (lambda: L.CPO(0.5, alpha=2.0), nls(0.5 * 3) + 2 * 1),
    (lambda: L.CPO(0.5, alpha=2.0, normalize="completion"), nls(0.5 * 3) + 2 * 1 / 2),
    (lambda: L.ORPO(0.5), 1 / 2 + 0.5 * nls(log_odds(math.exp(-1 / 2)) - log_odds(math.exp(-1)))),
    # the first two tokens of the rejected completion in full, the others by half: -3 - (-2.5)
    (lambda: L.LDDPO(0.5, L.DPO(0.5)), nls(0.5 * (1 + 0.5))),
    (lambda: L.LDDPO(0.0, L.DPO(0.5)), nls(0.5 * (1 - 0))),
    (lambda: L.WPO(L.DPO(0.5)), math.exp((-1 + 1) / 2) * math.exp((-4 + 2) / 4) * nls(1)),
    (lambda: L.WPO(L.DPO(0.5), alignment="none"), math.exp(-1 / 2) * math.exp(-4 / 4) * nls(1)),
    (lambda: L.WeightedSum([L.DPO(0.5), L.RSOHinge(0.25)], [2.0, 4.0]), 2 * nls(1) + 4 * 0.5),
    (lambda: L.WeightedSum([L.DPO(0.5), L.RSOHinge(0.25)]), nls(1) + 0.5),
    (lambda: L.RPO(0.5, alpha=2.0), nls(1) + 2 * 1 / 2),
]


def test_every_exported_loss_has_a_number() -> None:
    assert {type(make()) for make, _ in HAND} == exported_losses()


@pytest.mark.parametrize(("make", "expected"), HAND, ids=[inspect.getsource(m).strip()[:60] for m, _ in HAND])
def test_by_hand(make: Callable[[], PreferenceLoss], expected: float) -> None:
    assert make()(PAIR).losses.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "chosen", "rejected"),
    [
        (L.DPO(0.5), 0.5, -0.5),
        (L.LengthNormalizedDPO(2.0), 1.0, -0.5),
        (L.AOT(0.5), 0.5, -0.5),
        (L.SoftSPPO(0.25), 0.25, -0.25),
        (L.FDPO(L.ForwardKL(), 0.5), 0.5 * (1 - math.exp(-1)), 0.5 * (1 - math.exp(1))),
        (L.SLiCHF(), -1.0, -4.0),
        (L.NLL(), -1.0, -4.0),
        (L.SimPO(2.0), -1.0, -2.0),
        (L.CPO(0.5), -0.5, -2.0),
        (L.ORPO(), -0.5, -1.0),
        (L.LDDPO(0.5, L.DPO(0.5)), 0.5, -0.25),
        (L.WeightedSum([L.CPO(0.5), L.DPO(0.5)]), -0.5, -2.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreferenceLoss) else "",
)
def test_rewards_by_hand(loss: PreferenceLoss, chosen: float, rejected: float) -> None:
    output = loss(PAIR)
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == pytest.approx((chosen, rejected))


def test_metrics_by_hand() -> None:
    slic = L.SLiCHF(delta=5.0, lambda_=0.5, target="row")(PAIR).metrics
    assert (slic["slic/hinge"].item(), slic["slic/regulariser"].item()) == (2.0, 3.5)
    assert L.SoftSPPO()(PAIR).metrics["sppo/chosen_wins"].item() == pytest.approx(0.75)
    probability = L.SoftSPPO(margin="probability")(replace(PAIR, margin=torch.tensor([0.25])))
    assert probability.metrics["sppo/chosen_wins"].item() == 0.625  # 0.625 - 0.375 = 0.25
    assert L.WPO()(PAIR).metrics["wpo/weight"].item() == pytest.approx(math.exp(-0.5))
    orpo = L.ORPO(0.5)(PAIR)
    parts = orpo.metrics["orpo/nll"] + 0.5 * orpo.metrics["orpo/odds_ratio"]
    torch.testing.assert_close(parts, orpo.losses.detach())
