"""A model that two processes share weight by weight computes as a whole one, together or each on its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from lit_align.batch import Padded
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.policy.forward import CompletionForward
from lit_align.policy.load import load_model
from lit_align.policy.logps import plain_logps
from lit_align.policy.sharding import (
    gathered,
    in_lockstep,
    shard_like,
    shard_model,
    trained_whole,
    whole,
    whole_on_first,
)
from lit_align.sampling import TransformersSampler
from lit_align.sampling.engine import adapter_digest
from lit_align.training.step_watch import NonFiniteStep, demand_finite
from tests.helpers.processes import on_two_ranks
from tests.helpers.tiny import sampling_request, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.arange(3, 15).view(2, 6)


def spec_of(folder: Path, lora: bool) -> PolicySpec:
    return PolicySpec(str(folder), dtype="float32", lora=LoraSpec(r=3) if lora else None)


def in_group(work: Callable[..., Any], folder: Path, lora: bool) -> Any:
    """Runs `work(whole model, sharded model, rank)` in a process group of two."""
    dist.init_process_group("gloo")
    try:
        torch.manual_seed(0)
        model = load_model(spec_of(folder, lora))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.05)  # so that the adapters do something
        spread = copy.deepcopy(model)
        shard_model(spread, init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",)))
        return work(model, spread, dist.get_rank())
    finally:
        dist.destroy_process_group()


def check_passes_alone(model: nn.Module, spread: nn.Module, rank: int) -> None:
    """Before any pass together, by the base that a sampler calls; the ranks take different numbers of passes."""
    base = spread.get_base_model() if hasattr(spread, "peft_config") else spread
    expected = model(IDS).logits
    with gathered(spread), torch.no_grad():
        assert not in_lockstep(spread)
        for _ in range(1 + 2 * rank):
            with gathered(spread):  # nothing happens: the others need not enter it
                torch.testing.assert_close(base(input_ids=IDS).logits, expected, atol=1e-6, rtol=0)
    assert in_lockstep(spread)
    assert all(p.to_local().numel() < p.numel() for p in spread.parameters() if isinstance(p, DTensor) and p.ndim == 2)


def check_training(model: nn.Module, spread: nn.Module, rank: int) -> None:
    """Gradients are those of the mean over the ranks, and passes without gradients see each step."""
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.5) for each in (model, spread)]
    for _ in range(2):
        for each, rows in ((model, [IDS, IDS + 20]), (spread, [IDS + 20 * rank])):
            forward = CompletionForward()
            for ids in rows:
                (logps,) = forward(each, padded(ids[:, :3]), [padded(ids[:, 3:])])
                (logps.sum().mean() / len(rows)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            (expected,) = plain_logps(model, padded(IDS[:, :3]), [padded(IDS[:, 3:])])
            (logps,) = CompletionForward()(spread, padded(IDS[:, :3]), [padded(IDS[:, 3:])])
        torch.testing.assert_close(logps.logps, expected.logps, atol=1e-5, rtol=0)
    weights = dict(spread.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(whole(weights[name].detach()), parameter.detach(), atol=1e-6, rtol=0)


def check_widths(model: nn.Module, spread: nn.Module, rank: int) -> None:
    """One rank alone has rows of a width that is not checked yet; then both check."""
    forward = CompletionForward()
    for widths in ((20, 20), (20, 120), (120, 20), (200, 100)):
        ids = torch.randint(3, 300, (1, widths[rank]))
        parts = padded(ids[:, :5]), [padded(ids[:, 5:])]
        with torch.no_grad():
            (logps,) = forward(spread, *parts)
            (expected,) = plain_logps(model, *parts)
        torch.testing.assert_close(logps.logps, expected.logps, atol=1e-5, rtol=0)


def check_reading(model: nn.Module, spread: nn.Module, rank: int) -> None:
    own = dict(model.named_parameters())
    with trained_whole(spread), trained_whole(spread):
        assert adapter_digest(spread) == adapter_digest(model)
        kinds = {parameter.requires_grad: type(parameter.data) for parameter in spread.parameters()}
        assert kinds == {True: torch.Tensor, False: DTensor}
    with whole_on_first(spread, trained_only=False):
        for name, parameter in spread.named_parameters():
            assert isinstance(parameter.data, DTensor) == (rank == 1)
            assert rank == 1 or torch.equal(parameter, own[name])
        tied = spread.get_input_embeddings().weight is spread.get_output_embeddings().weight
        assert tied == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)
    assert all(isinstance(parameter.data, DTensor) for parameter in spread.parameters())


def check_sampling(model: nn.Module, spread: nn.Module, rank: int) -> None:
    """Each rank its own prompts, one of them none; the answers are those of the whole model."""
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12]][: 3 - 3 * rank]
    sampler = TransformersSampler(num_candidates=2, max_new_tokens=6, batch_size=3)
    expected = sampler.sample(sampling_request(model, tiny_tokenizer(), prompts))
    with gathered(spread):
        assert sampler.sample(sampling_request(spread, tiny_tokenizer(), prompts)) == expected


def check_a_second_model(model: nn.Module, spread: nn.Module, rank: int) -> None:
    """A reference is spread as its policy is, and what is copied into it counts at once; else it stays whole."""
    second = copy.deepcopy(model).requires_grad_(False)
    shard_like(second, model)
    assert not in_lockstep(second)
    shard_like(second, spread)
    assert in_lockstep(second)
    forward = CompletionForward()
    parts = padded(IDS[:, :3]), [padded(IDS[:, 3:])]
    weights = [*model.parameters(), *second.parameters()]  # as an optimizer or a refresh holds them
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(
                forward(second, *parts)[0].logps, plain_logps(model, *parts)[0].logps, atol=1e-5, rtol=0
            )
            for weight in weights:
                weight.mul_(1.1)


def check_not_finite(model: nn.Module, spread: nn.Module, rank: int) -> None:
    """What is not finite in one rank's part stops both."""
    trained = {name: p for name, p in spread.named_parameters() if p.requires_grad and p.ndim == 2}
    name, part = next(iter(trained.items()))
    if rank == 1:
        cast(DTensor, part).to_local().data.fill_(float("nan"))
    with pytest.raises(NonFiniteStep, match=name):
        demand_finite(dict(spread.named_parameters()), 1)


CHECKS = [check_passes_alone, check_training, check_widths, check_sampling, check_a_second_model, check_not_finite]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_of_two_processes(check: Any, lora: bool, tmp_path: Path, tiny_model: Path) -> None:
    on_two_ranks(tmp_path, in_group, check, tiny_model, lora)


def test_an_adapter_is_read_whole(tmp_path: Path, tiny_model: Path) -> None:
    on_two_ranks(tmp_path, in_group, check_reading, tiny_model, True)


def check_dtypes(model: nn.Module, spread: nn.Module, rank: int) -> None:
    model.get_output_embeddings().weight.data = model.get_output_embeddings().weight.data.half()
    with pytest.raises(ValueError, match="trained in one dtype, but those of a LlamaForCausalLM are in float16 and"):
        shard_model(model, init_device_mesh("cpu", (2,)))


def test_weights_of_two_dtypes_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    on_two_ranks(tmp_path, in_group, check_dtypes, tiny_model, False)


def padded(ids: torch.Tensor) -> Padded:
    return Padded(ids, torch.ones_like(ids, dtype=torch.bool))
