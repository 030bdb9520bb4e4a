"""Each loss that TRL also has, against TRL's own computation on the same log-probs: losses and gradients."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lit_align.losses as L
from lit_align.losses import PairLogps, PairTokens, PreferenceLoss

trl = pytest.importorskip("trl", minversion="1.16", reason="TRL is what the losses are compared with")
TRAINERS = {
    "DPO": trl.DPOTrainer,
    "CPO": importlib.import_module("trl.experimental.cpo").CPOTrainer,
    "ORPO": importlib.import_module("trl.experimental.orpo").ORPOTrainer,
}

CHOSEN_LENGTHS, REJECTED_LENGTHS, WIDTH = [4, 2, 6, 3], [3, 5, 6, 1], 6
EXACT: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


class Tokens:
    """Random log-probs of single tokens under policy and reference, and collisions; [8, 6], the chosen ones first."""

    def __init__(self, rows: slice = slice(None)) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw() -> Tensor:
            values = -3 * torch.rand(8, WIDTH, generator=generator, dtype=torch.float32)
            return values.view(2, 4, WIDTH)[:, rows].reshape(-1, WIDTH)

        lengths = torch.tensor([CHOSEN_LENGTHS, REJECTED_LENGTHS])[:, rows].reshape(-1)
        self.mask = torch.arange(WIDTH) < lengths[:, None]
        self.policy, self.reference, self.collisions = (draw() * self.mask for _ in range(3))
        self.policy.requires_grad_()

    def pairs(self) -> PairLogps:
        def halves(values: Tensor) -> tuple[Tensor, Tensor]:
            chosen, rejected = values.chunk(2)
            return chosen, rejected

        def sums(values: Tensor) -> tuple[Tensor, Tensor]:
            return halves(values.sum(-1))

        return PairLogps(
            *sums(self.policy),
            *sums(self.reference),
            *sums(self.mask),
            tokens=PairTokens(*halves(self.policy), *halves(self.mask), *halves(self.reference)),
            policy_chosen_collisions=sums(self.collisions)[0],
            policy_rejected_collisions=sums(self.collisions)[1],
        )


def ours(loss: PreferenceLoss, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """The mean loss and its gradient on the real tokens of the policy."""
    tokens = Tokens(rows)
    mean = loss(tokens.pairs()).losses.mean()
    mean.backward()
    assert tokens.policy.grad is not None
    return mean.detach(), tokens.policy.grad * tokens.mask


# ------------------------------------------------------------------ DPOTrainer


class Model(nn.Module):
    """Gives the log-probs it is made with, as a model with TRL's fused head does; positions of the prompt aside."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs: Tensor, collisions: Tensor) -> None:
        super().__init__()
        self.log_probs, self.collisions = log_probs, collisions

    def forward(self, **_: Any) -> SimpleNamespace:
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(
            log_probs=self.log_probs,
            log_sum_sq_probs=self.collisions,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )


def trl_dpo(rows: slice, loss_type: str | list[str], **settings: Any) -> tuple[Tensor, Tensor]:
    """The loss of TRL's DPOTrainer, with a prompt of one token, and its gradient on the real tokens of the policy."""
    tokens = Tokens(rows)
    trainer = object.__new__(TRAINERS["DPO"])
    defaults = {
        "accelerator": ACCELERATOR,
        "args": SimpleNamespace(discopop_tau=settings.pop("discopop_tau", 0.05), gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False,
        "beta": 0.1,
        "f_alpha_divergence_coef": 0.5,
        "f_divergence_type": "reverse_kl",
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "loss_types": [loss_type] if isinstance(loss_type, str) else loss_type,
        "loss_weights": [1.0],
        "model": Model(tokens.policy, tokens.collisions),
        "precompute_ref_logps": False,
        "ref_model": Model(tokens.reference, tokens.collisions),
        "use_weighting": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in (defaults | settings).items():
        object.__setattr__(trainer, name, value)
    mask = torch.nn.functional.pad(tokens.mask.long(), (1, 0))
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    loss.backward()
    assert tokens.policy.grad is not None
    return loss.detach(), tokens.policy.grad * tokens.mask


MIXED = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
DPO_CASES: list[tuple[Callable[[], PreferenceLoss], dict[str, Any]]] = [
    (L.DPO, {"loss_type": "sigmoid"}),
    (lambda: L.DPO(0.7), {"loss_type": "sigmoid", "beta": 0.7}),
    (lambda: L.RobustDPO(0.3, 0.2), {"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.2}),
    (lambda: L.LengthNormalizedDPO(2.0), {"loss_type": "sigmoid_norm", "beta": 2.0}),
    (lambda: L.IPO(0.5, length_normalize=True), {"loss_type": "ipo", "beta": 0.5}),
    (lambda: L.EXO(0.5, 1e-3), {"loss_type": "exo_pair", "beta": 0.5, "label_smoothing": 1e-3}),
    (lambda: L.NCA(0.5), {"loss_type": "nca_pair", "beta": 0.5}),
    (lambda: L.BCO(0.5, reward_shift=False), {"loss_type": "bco_pair", "beta": 0.5}),
    (lambda: L.SPPO(0.05), {"loss_type": "sppo_hard", "beta": 0.05}),
    (lambda: L.AOT(0.5, 0.1), {"loss_type": "aot", "beta": 0.5, "label_smoothing": 0.1}),
    (lambda: L.AOTUnpaired(0.5, 0.1), {"loss_type": "aot_unpaired", "beta": 0.5, "label_smoothing": 0.1}),
    (lambda: L.APOZero(0.5), {"loss_type": "apo_zero", "beta": 0.5}),
    (lambda: L.APODown(0.5), {"loss_type": "apo_down", "beta": 0.5}),
    (lambda: L.DiscoPOP(0.5, 0.3), {"loss_type": "discopop", "beta": 0.5, "discopop_tau": 0.3}),
    (lambda: L.RSOHinge(0.2), {"loss_type": "hinge", "beta": 0.2}),
    (lambda: L.FDPO(L.ReverseKL(), 0.3), {"loss_type": "sigmoid", "beta": 0.3, "f_divergence_type": "reverse_kl"}),
    (lambda: L.FDPO(L.ForwardKL(), 0.03), {"loss_type": "sigmoid", "beta": 0.03, "f_divergence_type": "forward_kl"}),
    (
        lambda: L.FDPO(L.JensenShannon(), 0.3),
        {"loss_type": "sigmoid", "beta": 0.3, "f_divergence_type": "js_divergence"},
    ),
    (
        lambda: L.FDPO(L.AlphaDivergence(alpha=0.3), 0.1),
        {"loss_type": "sigmoid", "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
    (lambda: L.NLL("batch"), {"loss_type": "sft"}),
    (lambda: L.WeightedSum([L.DPO(0.1), L.BCO(0.1, reward_shift=False), L.NLL("batch")], [0.8, 0.2, 1.0]), MIXED),
    (lambda: L.LDDPO(0.4), {"loss_type": "sigmoid", "ld_alpha": 0.4}),
    (lambda: L.LDDPO(0.4, L.IPO(0.5, length_normalize=True)), {"loss_type": "ipo", "beta": 0.5, "ld_alpha": 0.4}),
    (L.WPO, {"loss_type": "sigmoid", "use_weighting": True}),
    (lambda: L.WPO(L.APOZero(0.5)), {"loss_type": "apo_zero", "beta": 0.5, "use_weighting": True}),
    (lambda: L.WPO(L.LDDPO(0.4)), {"loss_type": "sigmoid", "ld_alpha": 0.4, "use_weighting": True}),
]
NAMES = ["-".join(str(value) for value in settings.values()) for _, settings in DPO_CASES]


@pytest.mark.parametrize(("make", "settings"), DPO_CASES, ids=NAMES)
def test_against_trls_dpo_trainer(make: Callable[[], PreferenceLoss], settings: dict[str, Any]) -> None:
    for actual, expected in zip(ours(make()), trl_dpo(slice(None), **settings), strict=True):
        torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize(("make", "settings"), DPO_CASES, ids=NAMES)
def test_each_pair_alone_against_trls_dpo_trainer(make: Callable[[], PreferenceLoss], settings: dict[str, Any]) -> None:
    for i in range(4):
        rows = slice(i, i + 1)
        for actual, expected in zip(ours(make(), rows), trl_dpo(rows, **settings), strict=True):
            torch.testing.assert_close(actual, expected, **EXACT)


def test_rpo_is_trls_of_each_pair_alone() -> None:
    """TRL averages the likelihood over the tokens of a micro-batch; of one pair that is the paper's mean."""
    rows = slice(2, 3)
    settings: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    for actual, expected in zip(ours(L.RPO(0.1, 0.5), rows), trl_dpo(rows, **settings), strict=True):
        torch.testing.assert_close(actual, expected, **EXACT)


# ------------------------------------------------------------------ CPOTrainer, ORPOTrainer

VOCABULARY = 11


def logits_and_batch() -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [8, 7, 11] and the rows that they are of: a prompt of one token, then the completion."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, WIDTH + 1, VOCABULARY, generator=generator).requires_grad_()
    mask = Tokens().mask
    ids = torch.randint(VOCABULARY, (8, WIDTH), generator=generator)
    labels = torch.nn.functional.pad(ids.masked_fill(~mask, -100), (1, 0), value=-100)
    attended = torch.nn.functional.pad(mask.long(), (1, 0), value=1)
    batch = {}
    for side, rows in (("chosen", slice(0, 4)), ("rejected", slice(4, 8))):
        batch[f"{side}_input_ids"] = labels[rows].clamp(min=0)
        batch[f"{side}_attention_mask"] = attended[rows]
        batch[f"{side}_labels"] = labels[rows]
    return logits, batch


def trl_reference_free(name: str, **settings: Any) -> tuple[Tensor, Tensor]:
    """The loss of TRL's CPOTrainer or ORPOTrainer and its gradient on the logits."""
    trainer = object.__new__(TRAINERS[name])
    shared = {
        "accelerator": ACCELERATOR,
        "alpha": 0.0,
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "label_smoothing": 0.0,
        "pad_token_id": 0,
        "padding_value": 0,
    }
    for key, value in (shared | settings).items():
        object.__setattr__(trainer, key, value)
    logits, batch = logits_and_batch()
    loss, _ = trainer.get_batch_loss_metrics(lambda *args, **kwargs: SimpleNamespace(logits=logits), batch)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def ours_reference_free(loss: PreferenceLoss) -> tuple[Tensor, Tensor]:
    logits, batch = logits_and_batch()
    ids = torch.cat([batch["chosen_input_ids"], batch["rejected_input_ids"]])[:, 1:]
    mask = Tokens().mask
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[..., None])[..., 0] * mask
    chosen, rejected = logps.sum(-1).chunk(2)
    chosen_lengths, rejected_lengths = mask.sum(-1).chunk(2)
    mean = loss(PairLogps(chosen, rejected, None, None, chosen_lengths, rejected_lengths)).losses.mean()
    mean.backward()
    assert logits.grad is not None
    return mean.detach(), logits.grad


REFERENCE_FREE: list[tuple[Callable[[], PreferenceLoss], str, dict[str, Any]]] = [
    (lambda: L.CPO(0.3, 0.7, "batch"), "CPO", {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.7}),
    (lambda: L.CPO(0.3, 0.0), "CPO", {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0}),
    (lambda: L.SimPO(2.0, 1.4), "CPO", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.4, "cpo_alpha": 0}),
    (lambda: L.SLiCHF(1.0, 0.0), "CPO", {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0}),
    (lambda: L.ORPO(0.4, "batch"), "ORPO", {"beta": 0.4}),
]


@pytest.mark.parametrize(
    ("make", "trainer", "settings"),
    REFERENCE_FREE,
    ids=["-".join([name, *map(str, settings.values())]) for _, name, settings in REFERENCE_FREE],
)
def test_against_trls_reference_free_trainers(
    make: Callable[[], PreferenceLoss], trainer: str, settings: dict[str, Any]
) -> None:
    for actual, expected in zip(ours_reference_free(make()), trl_reference_free(trainer, **settings), strict=True):
        torch.testing.assert_close(actual, expected, **EXACT)


# ------------------------------------------------------------------ nothing left out


def test_every_loss_of_trls_dpo_trainer_is_compared() -> None:
    """Read from its source, so that a loss new in TRL shows up here."""
    loss_types = set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(TRAINERS["DPO"]._compute_loss)))
    compared = {name for _, s in DPO_CASES for name in ([s["loss_type"]] if isinstance(s["loss_type"], str) else [])}
    assert len(loss_types) >= 15 and loss_types == compared
