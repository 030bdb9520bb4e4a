"""`gradient_checkpointing: offload`: the same gradients, with the layers' inputs in the host's memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_align.batch import Padded
from lit_align.policy import LoraSpec, PolicySpec, shared_logps
from lit_align.policy.load import load_model
from tests.helpers.tiny import tiny_llama_config

PAIRS, PROMPT, COMPLETION = 3, 6, 5


def gradients(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def rows(length: int) -> Padded:
        ids = torch.randint(3, 320, (PAIRS, length), generator=generator)
        return Padded(ids, torch.ones_like(ids, dtype=torch.bool))

    torch.manual_seed(2)  # the adapter's dropout
    chosen, rejected = shared_logps(model, rows(PROMPT), [rows(COMPLETION), rows(COMPLETION)])
    (chosen.sum() - rejected.sum()).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def load(model: Path, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    loaded = load_model(PolicySpec(str(model), **options))
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return loaded


@pytest.mark.parametrize("lora", [None, LoraSpec(r=4, dropout=0.5)], ids=["full", "lora"])
def test_gradients_are_the_same_and_inputs_of_layers_alone_are_moved(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraSpec | None
) -> None:
    moved: list[tuple[int, ...]] = []

    class ToHost(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pin_memory: bool) -> None:
            assert pin_memory is torch.cuda.is_available()

            def pack(tensor: Tensor) -> Tensor:
                if tensor.numel():  # torch 2.10 also saves an empty one for each checkpointed layer
                    moved.append(tuple(tensor.shape))
                return tensor.detach().clone()

            super().__init__(pack, lambda packed: packed)

    expected = gradients(load(tiny_model, lora=lora, gradient_checkpointing=True))
    monkeypatch.setattr("torch.autograd.graph.save_on_cpu", ToHost)
    found = gradients(load(tiny_model, lora=lora, gradient_checkpointing="offload"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = tiny_llama_config()
    width = PROMPT + 2 * COMPLETION
    assert moved == [(1, PAIRS * width, config.hidden_size)] * config.num_hidden_layers


def test_with_torch_s_own_move_to_the_host(tiny_model: Path) -> None:
    expected = gradients(load(tiny_model, lora=LoraSpec(r=4)))
    found = gradients(load(tiny_model, lora=LoraSpec(r=4), gradient_checkpointing="offload"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_nothing_deprecated_is_called(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_align.policy.load import keep_activations

    base = load_model(PolicySpec(str(tiny_model)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep_activations(PolicySpec(str(tiny_model), gradient_checkpointing="offload"), base)  # type: ignore[arg-type]
