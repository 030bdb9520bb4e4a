"""Weights in half precision train as those in float32 do, but for rounding: no step is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_align import DPO
from lit_align.plan.simulate import Setup, simulate
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.policy.load import load_model
from lit_align.training.float32_copies import copies_of, over_float32, take_gradients, whole_weights
from lit_align.training.module import AlignmentModule
from tests.helpers.modules import Recorder, loader, trainer
from tests.helpers.processes import DDP, on_two_ranks
from tests.helpers.tiny import save_tiny_model

RATE, STEPS = 5e-7, 20


@pytest.fixture(scope="module")
def half_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A model whose weights are stored in bfloat16."""
    folder = save_tiny_model(tmp_path_factory.mktemp("half"))
    load_model(PolicySpec(str(tiny_model), dtype="bfloat16")).save_pretrained(folder)
    return folder


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=RATE, weight_decay=0.0)


def module(model: Path, **spec: Any) -> AlignmentModule:
    torch.manual_seed(0)
    return AlignmentModule(PolicySpec(str(model), **spec), DPO(), optimizer=adamw)


def train(module: AlignmentModule, folder: Path, steps: int = STEPS, **options: Any) -> dict[str, Tensor]:
    """The weights that a checkpoint of the last step holds."""
    resume = options.pop("resume", None)
    task = trainer(folder, max_steps=steps, **options)
    task.fit(module, loader(1), ckpt_path=resume, weights_only=True)
    task.save_checkpoint(folder / f"{steps}.ckpt")
    weights: dict[str, Tensor] = torch.load(folder / f"{steps}.ckpt", weights_only=True)["state_dict"]
    return weights


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


@pytest.mark.parametrize("how", [{}, {"precision": "bf16-true"}], ids=["stored", "bf16-true"])
def test_small_steps_are_those_of_float32_but_for_rounding(
    how: dict[str, Any], half_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = module(half_model, dtype="float32")
    whole.configure_model()
    start = flat({name: p.detach().clone() for name, p in whole.named_parameters()})
    expected = flat(train(whole, tmp_path / "whole")) - start
    half = module(half_model, **({"dtype": "float32"} if how else {}))
    moved = flat(train(half, tmp_path / "half", **how)) - start
    assert "in which small steps are lost: the optimizer works on float32 copies" in capsys.readouterr().out
    rounded = {p.dtype for p in half.parameters()}
    assert rounded == {torch.bfloat16}
    assert (moved - expected).abs().mean() < 0.1 * expected.abs().mean()
    assert (moved * expected).sum() > 0.99 * moved.norm() * expected.norm()
    by_name = dict(half.named_parameters())
    saved = torch.load(tmp_path / "half" / f"{STEPS}.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name].bfloat16(), by_name[name]) for name in saved)


def test_adapters_under_bf16_true_keep_small_steps_too(tiny_model: Path, tmp_path: Path) -> None:
    adapters = module(tiny_model, lora=LoraSpec(r=2))
    adapters.configure_model()
    start = {name: p.detach().clone() for name, p in adapters.named_parameters() if p.requires_grad}
    saved = train(adapters, tmp_path, steps=4, precision="bf16-true")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    moved = [bool((saved[name] != start[name].bfloat16().float()).all()) for name in saved if "lora_B" in name]
    assert all(moved) and len(moved) == 14


def test_a_resumed_run_equals_an_uninterrupted_one(half_model: Path, tmp_path: Path) -> None:
    whole = train(module(half_model), tmp_path / "whole", steps=6)
    train(module(half_model), tmp_path / "cut", steps=3)
    resumed = train(module(half_model), tmp_path / "cut", steps=6, resume=tmp_path / "cut" / "3.ckpt")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_gradients_of_many_micro_batches_add_up_in_float32() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = over_float32(lambda params: torch.optim.SGD(params, lr=1.0), [weight])
    for _ in range(1000):
        (weight * 0.001).sum().backward()
        take_gradients(optimizer)
    (copy,) = copies_of(optimizer).values()
    assert weight.grad is None and copy.grad is not None
    torch.testing.assert_close(copy.grad, torch.full((4,), 1000 * float(torch.tensor(0.001).bfloat16())))
    optimizer.step()
    assert torch.equal(weight, copy.bfloat16())


def test_what_else_has_changed_a_weight_is_saved_as_it_is() -> None:
    moved, kept = (nn.Parameter(torch.ones(2, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = over_float32(lambda params: torch.optim.SGD(params, lr=1e-4), [moved, kept])
    (moved + kept).sum().backward()
    take_gradients(optimizer)
    optimizer.step()
    average = torch.full((2,), 3.0)
    saved = whole_weights(optimizer, {moved: "a", kept: "b"}, {"a": average, "b": kept.detach()})
    assert torch.equal(saved["a"], average) and torch.equal(saved["b"], torch.full((2,), 1 - 1e-4))


def test_float32_weights_are_stepped_themselves() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = over_float32(adamw, [weight])
    assert optimizer.param_groups[0]["params"][0] is weight and not copies_of(optimizer)


def test_the_plan_counts_the_copies(half_model: Path) -> None:
    setup = Setup(PolicySpec(str(half_model)), adamw, 1, 1, 16, 8)
    memory = simulate(setup)
    held = memory.moments["forward"]  # of the second step: all but what a step needs for a moment
    assert held["optimizer"] == pytest.approx((4 + 8) * memory.trained, rel=1e-2)
    assert held["weights"] == pytest.approx(2 * memory.trained, rel=1e-2)
    assert held["gradients"] == 4 * memory.trained


def _on_a_rank(model: Path, folder: Path) -> tuple[list[float], list[Tensor]]:
    recorder, policy = Recorder(), module(model)
    task = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=2, callbacks=[recorder], default_root_dir=folder, enable_checkpointing=False, **DDP,
    )  # fmt: skip
    task.fit(policy, loader(4))
    return recorder.losses, [copy.detach() for copy in copies_of(task.optimizers[0]).values()]


def test_two_processes_take_one_step(half_model: Path, tmp_path: Path) -> None:
    """With the same data on each rank the step is that of one process."""
    ranks = on_two_ranks(tmp_path, _on_a_rank, half_model, tmp_path)
    assert ranks[0][0] == ranks[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ranks[0][1], ranks[1][1], strict=True)) and ranks[0][1]
    alone = module(half_model)
    task = trainer(tmp_path, max_steps=3, accumulate_grad_batches=2)
    task.fit(alone, loader(4))
    copies = copies_of(task.optimizers[0]).values()
    worst = max(float((a - b.detach()).abs().max()) for a, b in zip(ranks[0][1], copies, strict=True))
    assert worst <= 2 * 3 * RATE
