"""One tester runs over every exported loss; identities."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.multiprocessing

import lit_align.losses as L
from lit_align.losses import Divergence, LossOutput, PreferenceLoss
from tests.helpers.loss_cases import CASES, Case, exported_losses, ordinary, pairs, replace_leaves, row, swapped, wrong


def test_every_exported_loss_is_tested() -> None:
    assert {type(case.make()) for case in CASES} == exported_losses()


def test_every_divergence_is_tested() -> None:
    losses = [case.make() for case in CASES]
    assert {type(loss.divergence) for loss in losses if isinstance(loss, L.FDPO)} == set(Divergence.__subclasses__())


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
class TestEveryLoss:
    def test_one_value_per_pair(self, case: Case) -> None:
        output = case.make()(ordinary())
        assert isinstance(output, LossOutput)
        for value in (output.losses, output.chosen_rewards, output.rejected_rewards, *output.metrics.values()):
            assert value.shape == (3,)

    def test_a_pair_sees_its_neighbours_only_where_the_loss_says_so(self, case: Case) -> None:
        loss, batch = case.make(), ordinary()
        alone = torch.cat([case.make()(row(batch, i)).losses for i in range(3)])
        assert torch.allclose(loss(batch).losses, alone) == loss.per_pair

    @pytest.mark.parametrize("gap", [-1e5, 0.0, 1e5])
    def test_finite_at_extremes(self, case: Case, gap: float) -> None:
        extreme = replace_leaves(ordinary(), [-1e5 + gap] * 3, [-1e5] * 3)
        output = case.make()(extreme)
        output.losses.sum().backward()
        for value in (output.losses, extreme.policy_chosen_logps.grad, extreme.policy_rejected_logps.grad):
            assert value is None or value.isfinite().all()

    def test_a_step_down_the_gradient_prefers_the_chosen(self, case: Case) -> None:
        batch = wrong() if case.only_when_wrong else ordinary()
        case.make()(batch).losses.sum().backward()
        chosen, rejected = batch.policy_chosen_logps.grad, batch.policy_rejected_logps.grad
        assert chosen is not None and (chosen < 0).all()
        assert (rejected is not None and bool((rejected > 0).all())) == case.moves_rejected

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_keeps_the_dtype(self, case: Case, dtype: torch.dtype) -> None:
        output = case.make()(ordinary(dtype))
        assert output.losses.dtype == dtype
        torch.testing.assert_close(output.losses.float(), case.make()(ordinary()).losses, rtol=0.02, atol=0.05)

    def test_pickles(self, case: Case) -> None:
        loss = case.make()
        copy = pickle.loads(pickle.dumps(loss))
        torch.testing.assert_close(copy(ordinary()).losses, loss(ordinary()).losses)

    def test_no_gradient_into_reference_or_rewards(self, case: Case) -> None:
        batch = ordinary()
        output = case.make()(batch)
        output.losses.sum().backward()
        assert batch.reference_chosen_logps is not None and batch.reference_chosen_logps.grad is None
        assert batch.reference_rejected_logps is not None and batch.reference_rejected_logps.grad is None
        assert not any(v.requires_grad for v in (output.chosen_rewards, output.rejected_rewards))
        assert not any(v.requires_grad for v in output.metrics.values())

    def test_needs_what_it_says(self, case: Case) -> None:
        """With only what it says it needs the loss is the same; without one of these it is refused."""
        loss, expected = case.make(), case.make()(ordinary()).losses
        wants = {
            ("reference_chosen_logps", "reference_rejected_logps"): loss.needs_reference,
            ("tokens",): loss.needs_token_logps,
            ("policy_target_logps",): loss.needs_target,
            ("policy_chosen_collisions", "policy_rejected_collisions"): loss.needs_collisions,
        }
        without: dict[str, Any] = {name: None for names, needed in wants.items() if not needed for name in names}
        torch.testing.assert_close(loss(replace(ordinary(), **without)).losses, expected)
        for names in (names for names, needed in wants.items() if needed):
            nothing: dict[str, Any] = dict.fromkeys(names)
            bare = replace(ordinary(), **nothing)
            if names[0].startswith("reference") and loss.needs_token_logps and bare.tokens is not None:
                tokens = replace(bare.tokens, reference_chosen_logps=None, reference_rejected_logps=None)
                bare = replace(bare, tokens=tokens)
            with pytest.raises(ValueError, match="the pairs came without"):
                case.make()(bare)

    def test_evaluation_changes_nothing(self, case: Case) -> None:
        loss = case.make().eval()
        before = {name: value.clone() for name, value in loss.state_dict().items()}
        loss(ordinary())
        for name, value in loss.state_dict().items():
            torch.testing.assert_close(value, before[name])


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize(
    ("loss", "neutral"),
    [
        (L.DPO(), math.log(2)),
        (L.DPO(label_smoothing=0.3), math.log(2)),
        (L.RobustDPO(), math.log(2)),
        (L.LengthNormalizedDPO(), math.log(2)),
        (L.IPO(beta=0.5), 1.0),
        (L.EXO(label_smoothing=0.25), math.log(4 / 3) / 2),
        (L.NCA(), 2 * math.log(2)),
        (L.BCO(), 2 * math.log(2)),
        (L.SPPO(beta=0.5), 2.0),
        (L.AOT(), math.log(2)),
        (L.AOTUnpaired(), math.log(2)),
        (L.APOZero(), 1.0),
        (L.APODown(), 1.0),
        (L.DiscoPOP(), (math.log(2) + 1) / 2),
        (L.FDPO(L.ForwardKL()), math.log(2)),
        (L.FDPO(L.JensenShannon()), math.log(2)),
        (L.FDPO(L.AlphaDivergence()), math.log(2)),
        (L.RSOHinge(), 1.0),
        (L.LDDPO(), math.log(2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreferenceLoss) else "",
)
def test_policy_equal_to_reference_is_neutral(loss: PreferenceLoss, neutral: float) -> None:
    output = loss(pairs([-3.0, -8.0], [-5.0, -2.0], [-3.0, -8.0], [-5.0, -2.0], [2, 5], [3, 1]))
    torch.testing.assert_close(output.losses, torch.full((2,), neutral))
    torch.testing.assert_close(output.chosen_rewards, torch.zeros(2))
    torch.testing.assert_close(output.rejected_rewards, torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "slope"),
    [
        (L.DPO, 1.0),
        (lambda: L.DPO(label_smoothing=0.2), 0.6),
        (lambda: L.RobustDPO(label_smoothing=0.2), 1 / 0.6),
        (L.LengthNormalizedDPO, 1.0),
        (lambda: L.IPO(beta=0.5), 8.0),
        (lambda: L.BCO(reward_shift=False), 1.0),
        (lambda: L.FDPO(L.ReverseKL()), 1.0),
        (lambda: L.FDPO(L.ForwardKL()), 1.0),
        (lambda: L.FDPO(L.JensenShannon()), 1.0),
        (lambda: L.FDPO(L.AlphaDivergence(0.5)), 1.0),
        (lambda: L.SimPO(gamma=0.0), 1.0),
        (lambda: L.CPO(alpha=0.0), 1.0),
        (L.LDDPO, 1.0),
    ],
)
def test_swapping_chosen_and_rejected_costs_the_margin(make: Callable[[], PreferenceLoss], slope: float) -> None:
    """-log sigmoid(z) + log sigmoid(-z) = -z; IPO: (h - c)^2 - (h + c)^2 = -4 c h with c = 1 / (2 beta), z = beta h."""
    batch = ordinary(torch.float64)
    output = make()(batch)
    difference = output.losses - make()(swapped(batch)).losses
    torch.testing.assert_close(difference, -slope * (output.chosen_rewards - output.rejected_rewards))


def test_swapping_a_soft_pair_changes_nothing() -> None:
    loss = L.SoftSPPO(beta=0.1)
    torch.testing.assert_close(loss(ordinary()).losses, loss(swapped(ordinary())).losses)


def test_apo_zero_of_a_pair_and_its_swap_sum_to_two() -> None:
    total = L.APOZero()(ordinary()).losses + L.APOZero()(swapped(ordinary())).losses
    torch.testing.assert_close(total, torch.full((3,), 2.0))


@pytest.mark.parametrize("divergence", [L.ForwardKL(), L.AlphaDivergence(0.9)])
def test_an_exponential_cut_off_still_has_a_gradient(divergence: Divergence) -> None:
    """A chosen completion 100 nats below the reference, and one 200 below, which costs more."""
    batch = pairs([-100.0, -200.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    losses = L.FDPO(divergence)(batch).losses
    losses.sum().backward()
    assert batch.policy_chosen_logps.grad is not None and (batch.policy_chosen_logps.grad < -1e10).all()
    assert losses[1] > losses[0]


def test_limits_meet_other_losses() -> None:
    batch, expected = ordinary(torch.float64), L.DPO(0.1)(ordinary(torch.float64)).losses
    for loss in (
        L.RobustDPO(0.1, 0.0),
        L.FDPO(L.ReverseKL(), 0.1),
        L.LDDPO(1.0, L.DPO(0.1)),
        L.WeightedSum([L.DPO(0.1)]),
    ):
        torch.testing.assert_close(loss(batch).losses, expected)
    torch.testing.assert_close(L.FDPO(L.AlphaDivergence(1e-7), 0.1)(batch).losses, expected)
    almost_forward = L.FDPO(L.AlphaDivergence(1 - 1e-9))(batch).losses
    torch.testing.assert_close(almost_forward, L.FDPO(L.ForwardKL())(batch).losses)
    certain = replace(batch, margin=torch.full((3,), 1e3))
    torch.testing.assert_close(L.SoftSPPO()(certain).losses, L.SPPO()(batch).losses)
    torch.testing.assert_close(L.RPO(0.1, 0.5)(batch).losses, expected + 0.5 * L.NLL()(batch).losses)
    for sorting in (L.AOT, L.AOTUnpaired):
        torch.testing.assert_close(sorting(0.1)(row(batch, 1)).losses, expected[1:2])
