"""One tester runs over every exported loss; numbers derived by hand; identities."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

import lit_align.losses as losses
from lit_align.losses import DPO, LossOutput, PairLogps, PreferenceLoss, RSOHinge, SLiCHF

MAKERS: list[Callable[[], PreferenceLoss]] = [
    DPO,
    lambda: DPO(beta=0.5, label_smoothing=0.1),
    RSOHinge,
    SLiCHF,
    lambda: SLiCHF(delta=2.0, lambda_=0.0),
    lambda: SLiCHF(target="row"),
]


def pairs(
    chosen: list[float],
    rejected: list[float],
    reference_chosen: list[float] | None = None,
    reference_rejected: list[float] | None = None,
    target: list[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> PairLogps:
    def tensor(values: list[float] | None) -> Tensor | None:
        return None if values is None else torch.tensor(values, dtype=dtype)

    lengths = torch.full((len(chosen),), 4)
    return PairLogps(
        torch.tensor(chosen, dtype=dtype).requires_grad_(),
        torch.tensor(rejected, dtype=dtype).requires_grad_(),
        tensor(reference_chosen),
        tensor(reference_rejected),
        lengths,
        lengths,
        tensor(target),
        lengths,
    )


def ordinary(dtype: torch.dtype = torch.float32) -> PairLogps:
    return pairs([-10.0, -20.0, -5.0], [-10.5, -19.0, -5.5], [-11.0] * 3, [-11.5] * 3, [-9.0] * 3, dtype=dtype)


def test_every_exported_loss_is_tested() -> None:
    exported = {value for value in vars(losses).values() if isinstance(value, type)} - {PreferenceLoss}
    assert {type(make()) for make in MAKERS} == {c for c in exported if issubclass(c, PreferenceLoss)}


@pytest.mark.parametrize("make", MAKERS)
class TestEveryLoss:
    def test_one_value_per_pair(self, make: Callable[[], PreferenceLoss]) -> None:
        output = make()(ordinary())
        assert isinstance(output, LossOutput)
        for value in (output.losses, output.chosen_rewards, output.rejected_rewards, *output.metrics.values()):
            assert value.shape == (3,)

    def test_a_pair_does_not_see_its_neighbours(self, make: Callable[[], PreferenceLoss]) -> None:
        whole = make()(ordinary())
        values = {f.name: getattr(ordinary(), f.name) for f in fields(PairLogps)}
        alone = make()(PairLogps(**{k: v[1:2] if v is not None else None for k, v in values.items()}))
        torch.testing.assert_close(alone.losses, whole.losses[1:2])

    @pytest.mark.parametrize("gap", [-1e5, 0.0, 1e5])
    def test_finite_at_extremes(self, make: Callable[[], PreferenceLoss], gap: float) -> None:
        extreme = pairs([-1e5 + gap], [-1e5], [-1e5], [-1e5], [-1e5])
        output = make()(extreme)
        output.losses.sum().backward()
        for value in (output.losses, extreme.policy_chosen_logps.grad, extreme.policy_rejected_logps.grad):
            assert value is not None and value.isfinite().all()

    def test_a_step_down_the_gradient_prefers_the_chosen(self, make: Callable[[], PreferenceLoss]) -> None:
        batch = ordinary()
        make()(batch).losses.sum().backward()
        chosen, rejected = batch.policy_chosen_logps.grad, batch.policy_rejected_logps.grad
        assert chosen is not None and rejected is not None
        assert (chosen < 0).all() and (rejected > 0).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_keeps_the_dtype(self, make: Callable[[], PreferenceLoss], dtype: torch.dtype) -> None:
        output = make()(ordinary(dtype))
        assert output.losses.dtype == dtype
        torch.testing.assert_close(output.losses.float(), make()(ordinary()).losses, rtol=0.02, atol=0.05)

    def test_pickles(self, make: Callable[[], PreferenceLoss]) -> None:
        loss = make()
        torch.testing.assert_close(pickle.loads(pickle.dumps(loss))(ordinary()).losses, loss(ordinary()).losses)

    def test_no_gradient_into_reference_or_rewards(self, make: Callable[[], PreferenceLoss]) -> None:
        batch = ordinary()
        output = make()(batch)
        output.losses.sum().backward()
        assert batch.references()[0].grad is None and batch.references()[1].grad is None
        assert not any(v.requires_grad for v in (output.chosen_rewards, output.rejected_rewards))
        assert not any(v.requires_grad for v in output.metrics.values())

    def test_needs_what_it_says(self, make: Callable[[], PreferenceLoss]) -> None:
        loss = make()
        bare = replace(ordinary(), reference_chosen_logps=None, reference_rejected_logps=None)
        if loss.needs_reference:
            with pytest.raises(ValueError, match="without reference log-probs"):
                loss(bare)
        else:
            torch.testing.assert_close(loss(bare).losses, loss(ordinary()).losses)


# log-ratios: chosen -1 - (-2) = 1, rejected -4 - (-3) = -1; their difference is 2
BY_HAND = pairs([-1.0], [-4.0], [-2.0], [-3.0], [-7.0])


def test_dpo_by_hand() -> None:
    output = DPO(beta=0.5)(BY_HAND)  # sigmoid(0.5 * 2) = 1 / (1 + e^-1)
    assert output.losses.item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == (0.5, -0.5)


def test_dpo_label_smoothing_by_hand() -> None:
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert DPO(0.5, label_smoothing=0.2)(BY_HAND).losses.item() == pytest.approx(0.8 * right + 0.2 * wrong)


def test_rso_hinge_by_hand() -> None:
    output = RSOHinge(beta=0.25)(BY_HAND)  # 1 - 0.25 * 2
    assert output.losses.item() == pytest.approx(0.5)
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == (0.25, -0.25)
    assert RSOHinge(beta=0.6)(BY_HAND).losses.item() == 0.0  # 1 - 1.2 < 0: beyond the margin


def test_slic_hf_by_hand() -> None:
    # hinge: max(0, 5 - (-1) + (-4)) = 2; regulariser: -0.5 * log-prob of the target
    chosen = SLiCHF(delta=5.0, lambda_=0.5)(BY_HAND)
    assert chosen.losses.item() == pytest.approx(2 + 0.5 * 1)
    row = SLiCHF(delta=5.0, lambda_=0.5, target="row")(BY_HAND)
    assert row.losses.item() == pytest.approx(2 + 0.5 * 7)
    assert (row.metrics["slic/hinge"].item(), row.metrics["slic/regulariser"].item()) == (2.0, 3.5)
    assert SLiCHF(delta=2.0, lambda_=0.5)(BY_HAND).losses.item() == pytest.approx(0.5)  # 2 + 1 - 4 < 0


def test_policy_equal_to_reference_is_neutral() -> None:
    same = pairs([-3.0, -8.0], [-5.0, -2.0], [-3.0, -8.0], [-5.0, -2.0])
    for loss, neutral in ((DPO(), math.log(2)), (DPO(label_smoothing=0.3), math.log(2)), (RSOHinge(), 1.0)):
        output = loss(same)
        torch.testing.assert_close(output.losses, torch.full((2,), neutral))
        assert (output.chosen_rewards == 0).all() and (output.rejected_rewards == 0).all()


def test_swapping_chosen_and_rejected_negates_dpos_logit() -> None:
    swapped = pairs([-4.0], [-1.0], [-3.0], [-2.0])
    # -log sigmoid(-h) = h - log sigmoid(h), with h = 0.5 * 2
    torch.testing.assert_close(DPO(0.5)(swapped).losses, 1.0 + DPO(0.5)(BY_HAND).losses)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DPO(beta=0), "beta"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing"),
        (lambda: RSOHinge(beta=-1), "beta"),
        (lambda: SLiCHF(delta=0), "delta"),
        (lambda: SLiCHF(lambda_=-0.1), "lambda_"),
        (lambda: SLiCHF(target="best"), "target"),  # type: ignore[arg-type]
    ],
)
def test_hyper_parameters_out_of_range_are_refused(make: Callable[[], PreferenceLoss], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        make()


def test_slic_hf_without_its_targets_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="add the column `target`"):
        SLiCHF(target="row")(replace(ordinary(), policy_target_logps=None))
