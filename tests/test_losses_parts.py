"""Losses with state, losses made of losses, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lit_align.losses as L
from lit_align.losses import LogRatioLoss, PairLogps, PreferenceLoss
from tests.helpers.loss_cases import ordinary, pairs
from tests.helpers.processes import on_two_ranks

# ------------------------------------------------------------------ what has state, what is composed


def test_bco_shifts_by_the_mean_of_earlier_training_batches() -> None:
    loss = L.BCO(beta=1.0)
    first = pairs([1.0], [-2.0], [0.0], [0.0])
    assert loss(first).metrics["bco/reward_shift"].item() == 0.0
    assert loss(pairs([4.0, 1.0], [-3.0, 2.0], [0.0] * 2, [0.0] * 2)).metrics["bco/reward_shift"][0].item() == -0.5
    # (1 - 2 + 4 + 1 - 3 + 2) / 6 = 0.5
    again = loss.eval()(first)
    assert again.metrics["bco/reward_shift"].item() == 0.5
    shifted = math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-2.5))
    assert again.losses.item() == pytest.approx(shifted)

    restored = L.BCO(beta=1.0)
    restored.load_state_dict(loss.state_dict())
    torch.testing.assert_close(restored.eval()(first).losses, again.losses)
    L.WPO(restored).reference_changed()
    assert restored(first).metrics["bco/reward_shift"].item() == 0.0


def _bco_of_one_rank() -> tuple[float, float]:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    loss = L.BCO(beta=1.0)
    loss([pairs([1.0, 3.0], [-2.0, 0.0], [0.0] * 2, [0.0] * 2), pairs([6.0], [4.0], [0.0], [0.0])][rank])
    return loss.reward_mean.item(), loss.reward_count.item()


def test_the_reward_shift_of_bco_is_the_mean_over_ranks(tmp_path: Path) -> None:
    assert on_two_ranks(tmp_path, _bco_of_one_rank) == [(2.0, 6)] * 2  # (1 + 3 - 2 + 0 + 6 + 4) / 6


def test_the_weights_of_wpo_take_no_gradient() -> None:
    weighted, plain = ordinary(), ordinary()
    output = L.WPO()(weighted)
    output.losses.sum().backward()
    (output.metrics["wpo/weight"] * L.DPO()(plain).losses).sum().backward()
    torch.testing.assert_close(weighted.policy_chosen_logps.grad, plain.policy_chosen_logps.grad)


def test_aot_sorts_each_side_apart() -> None:
    def dpo(margin: float) -> float:
        return math.log(1 + math.exp(-margin))

    # margins of the policy 5, 1, 3 and of the reference 2, 0, 7: sorted 1-0, 3-2, 5-7
    paired = pairs([5.0, 1.0, 3.0], [0.0] * 3, [2.0, 0.0, 7.0], [0.0] * 3)
    assert L.AOT(beta=1.0)(paired).losses.tolist() == pytest.approx([dpo(-2), dpo(1), dpo(1)])
    # log-ratios of the chosen 5, 1, 3 and of the rejected 2, 0, 7: the same
    unpaired = pairs([5.0, 1.0, 3.0], [2.0, 0.0, 7.0], [0.0] * 3, [0.0] * 3)
    assert L.AOTUnpaired(beta=1.0)(unpaired).losses.tolist() == pytest.approx([dpo(-2), dpo(1), dpo(1)])
    reordered = pairs([5.0, 1.0, 3.0], [7.0, 2.0, 0.0], [0.0] * 3, [0.0] * 3)
    torch.testing.assert_close(L.AOTUnpaired()(unpaired).losses, L.AOTUnpaired()(reordered).losses)


def test_a_sum_needs_what_its_parts_need_and_logs_them() -> None:
    total = L.WeightedSum([L.NLL(target="row"), L.LDDPO(), L.WPO(), L.NLL(normalize="batch")])
    assert total.needs_reference and total.needs_token_logps and total.needs_target and total.needs_collisions
    assert not total.per_pair and not L.WeightedSum([L.NLL(), L.SimPO()]).needs_reference
    output = total(ordinary())
    assert set(output.metrics) == {"loss/NLL", "loss/LDDPO", "loss/WPO", "loss/NLL_2", "wpo/weight"}
    torch.testing.assert_close(output.chosen_rewards, ordinary().policy_chosen_logps.detach())


def test_two_losses_of_one_class_keep_their_metrics_apart() -> None:
    metrics = L.WeightedSum([L.CPO(beta=0.1), L.CPO(beta=0.2)])(ordinary()).metrics
    torch.testing.assert_close(metrics["cpo/prefer"], L.CPO(beta=0.1)(ordinary()).metrics["cpo/prefer"])
    torch.testing.assert_close(metrics["cpo/prefer_2"], L.CPO(beta=0.2)(ordinary()).metrics["cpo/prefer"])


def test_the_likelihood_of_a_batch_counts_each_token_alike() -> None:
    losses = L.NLL(normalize="batch")(ordinary()).losses  # log-probs -10, -20, -5 of 4, 5 and 3 tokens
    torch.testing.assert_close(losses.detach(), torch.tensor([10.0, 20.0, 5.0]) * 3 / 12)


def test_a_loss_of_ones_own_is_weighted_too() -> None:
    class Log(LogRatioLoss):
        def compare(self, chosen: Tensor, rejected: Tensor) -> Tensor:
            return rejected - chosen

    output = L.WeightedSum([Log(beta=2.0), L.WPO(Log(1.0))], [1.0, 0.0])(ordinary())
    torch.testing.assert_close(output.losses.detach(), torch.tensor([0.0, 1.5, -2.5]))
    torch.testing.assert_close(output.chosen_rewards, torch.tensor([2.0, -18.0, 6.0]))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: L.DPO(beta=0), "beta"),
        (lambda: L.DPO(beta=math.inf), "beta"),
        (lambda: L.DPO(label_smoothing=0.5), "label_smoothing"),
        (lambda: L.RobustDPO(label_smoothing=0.5), "label_smoothing"),
        (lambda: L.EXO(label_smoothing=0.0), "label_smoothing"),
        (lambda: L.AOT(label_smoothing=-0.1), "label_smoothing"),
        (lambda: L.SoftSPPO(margin="score"), "margin"),  # type: ignore[arg-type]
        (lambda: L.DiscoPOP(tau=2.0), "tau"),
        (lambda: L.AlphaDivergence(alpha=1.0), "alpha"),
        (lambda: L.RSOHinge(beta=-1), "beta"),
        (lambda: L.SLiCHF(delta=0), "delta"),
        (lambda: L.SLiCHF(lambda_=-0.1), "lambda_"),
        (lambda: L.SLiCHF(target="best"), "target"),  # type: ignore[arg-type]
        (lambda: L.NLL(normalize="mean"), "normalize"),  # type: ignore[arg-type]
        (lambda: L.NLL(target="best"), "target"),  # type: ignore[arg-type]
        (lambda: L.SimPO(beta=0), "beta"),
        (lambda: L.SimPO(gamma=-1), "gamma"),
        (lambda: L.CPO(alpha=-1), "alpha"),
        (lambda: L.ORPO(lambda_=0), "lambda_"),
        (lambda: L.LDDPO(alpha=1.5), "alpha"),
        (lambda: L.LDDPO(loss=L.WeightedSum([L.DPO(), L.WPO()])), "loss"),
        (lambda: L.WPO(alignment="greedy"), "alignment"),  # type: ignore[arg-type]
        (lambda: L.WPO(L.AOT()), "loss"),
        (lambda: L.RPO(alpha=-1), "alpha"),
        (lambda: L.WeightedSum([]), "losses"),
        (lambda: L.WeightedSum([L.DPO(), L.NLL()], [1.0]), "weights"),
        (lambda: L.WeightedSum([L.DPO()], [-1.0]), "weights"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(make: Callable[[], PreferenceLoss], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must"):
        make()


@pytest.mark.parametrize("loss", [L.SLiCHF(target="row"), L.NLL(target="row")])
def test_a_loss_without_its_targets_says_what_to_do(loss: PreferenceLoss) -> None:
    with pytest.raises(ValueError, match="add the column `target`"):
        loss(replace(ordinary(), policy_target_logps=None))


def with_margin(*margin: float) -> PairLogps:
    return replace(ordinary(), margin=torch.tensor(margin))


def test_soft_sppo_refuses_margins_that_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="needs the judge's scores"):
        L.SoftSPPO()(with_margin(0.5, math.nan, 1.0))
    with pytest.raises(ValueError, match="needs the judge's scores"):
        L.SoftSPPO()(replace(ordinary(), margin=None))
    with pytest.raises(ValueError, match="the margin -3"):
        L.SoftSPPO(margin="probability")(with_margin(0.5, -3.0, 1.0))
