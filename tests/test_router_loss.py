"""The balancing loss of a mixture of experts, as the model's config switches it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3MoeConfig

from lit_align.losses import DPO
from lit_align.policy import PolicySpec, plain_logps, shared_logps
from lit_align.training.module import AlignmentModule
from tests.helpers.modules import adamw, batch, loader_of, trainer
from tests.helpers.row_models import DECODER, MIXTURES, gradients, make_model, rows
from tests.helpers.tiny import save_tiny_model

ALONE = rows(9, seed=1), [rows(6, seed=2)]


def balancing(model: nn.Module, parts: list[Any]) -> torch.Tensor:
    """By the model itself, of one row."""
    ids = torch.cat([part.ids[0] for part in parts])[None]
    loss: torch.Tensor = model(input_ids=ids, output_router_logits=True).aux_loss
    return loss


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("way", [shared_logps, plain_logps])
def test_it_is_the_models_own_for_a_single_completion(name: str, way: Any) -> None:
    model = make_model(MIXTURES[name], None)
    *_, router = way(model, *ALONE, with_router_loss=True)
    wanted = balancing(model, [ALONE[0], *ALONE[1]])
    torch.testing.assert_close(router.sum()[0], wanted, atol=1e-5, rtol=1e-5)
    router.sum().sum().backward()
    found = gradients(model)
    wanted.backward()
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(found[key], gradient, atol=1e-5, rtol=1e-4, msg=key)


def test_a_prompt_counts_once_for_all_its_completions() -> None:
    model = make_model(MIXTURES["mixtral"], None)
    one, two = rows(1, seed=2), rows(1, seed=3)
    counted: list[int] = []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda _, args, __: counted.append(args[0].numel() // 32))
    shared_logps(model, ALONE[0], [one, two], with_router_loss=True)
    assert counted == [9 + 1 + 1]


def fitted(folder: Path, tokens: int | None = None, **config: Any) -> tuple[list[float], Any]:
    settings = {**DECODER, "vocab_size": 512, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 32}
    path = save_tiny_model(folder / "model", config=Qwen3MoeConfig(**settings, num_experts_per_tok=2, **config))
    torch.manual_seed(0)
    module = AlignmentModule(PolicySpec(str(path)), DPO(), optimizer=adamw)
    module._split.tokens = tokens
    run = trainer(folder, max_steps=1)
    run.fit(module, loader_of([batch(0)]))
    return [float(run.logged_metrics["loss"]), float(run.logged_metrics.get("router_loss", 0))], module


def test_a_step_adds_it_by_the_models_weight(tmp_path: Path) -> None:
    without, _ = fitted(tmp_path / "a", output_router_logits=False, router_aux_loss_coef=0.5)
    with_loss, _ = fitted(tmp_path / "b", output_router_logits=True, router_aux_loss_coef=0.5)
    assert without[1] == 0 < with_loss[1]
    assert with_loss[0] == pytest.approx(without[0] + 0.5 * with_loss[1], rel=1e-5)


def test_in_parts_each_has_its_own(tmp_path: Path) -> None:
    without, _ = fitted(tmp_path / "a", output_router_logits=False, router_aux_loss_coef=0.5)
    whole, _ = fitted(tmp_path / "b", output_router_logits=True, router_aux_loss_coef=0.5)
    parts, _ = fitted(tmp_path / "c", tokens=1, output_router_logits=True, router_aux_loss_coef=0.5)
    assert parts[1] > 0 and parts[1] != whole[1]
    assert parts[0] == pytest.approx(without[0] + 0.5 * parts[1], rel=1e-5)
