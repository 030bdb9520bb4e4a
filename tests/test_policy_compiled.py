"""`compile`: the same log-probs and gradients, compiled once for all lengths, and only where it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec, plain_logps, shared_logps
from lit_align.policy.compiled import _compiled, compile_layers
from lit_align.policy.load import load_model
from lit_align.reward.load import load_reward_model
from lit_align.sampling import TransformersSampler
from lit_align.training.module import AlignmentModule
from tests.helpers.modules import adamw, loader, trainer
from tests.helpers.row_models import COMPLETIONS, CONFIGS, PROMPT, assert_same, gradients, loss_of, make_model, rows
from tests.helpers.tiny import sampling_request, save_tiny_model, tiny_llama_config, tiny_tokenizer

LORA = LoraSpec(r=4, target_modules=["q_proj", "down_proj"])  # fewer of the same layers to trace
torch_compile = torch.compile


@pytest.fixture(autouse=True)
def _compiles_anew() -> Iterator[None]:
    def reset() -> None:
        _compiled.cache_clear()
        torch._dynamo.reset()
        counters.clear()

    reset()
    yield
    reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are traced and differentiated as `torch.compile` does it, but no C++ is written: seconds, not minutes."""

    def compile_(function: Any, dynamic: bool, options: object) -> Any:
        return torch_compile(function, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_)


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose only layer is traced in half the time of two."""
    config = tiny_llama_config()
    config.num_hidden_layers = 1
    return save_tiny_model(tmp_path_factory.mktemp("models") / "one-layer", config=config)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def awake(spec: PolicySpec, load: Callable[[PolicySpec], nn.Module] = load_model) -> nn.Module:
    """A model with adapters that change something, the same ones every time."""
    torch.manual_seed(2)
    model = load(spec)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def backward(model: nn.Module, *lengths: int) -> None:
    prompt, completions = rows(*lengths), [rows(*lengths, seed=1), rows(*(n + 2 for n in lengths), seed=2)]
    loss_of(shared_logps(model, prompt, completions)).backward()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_code_gives_the_numbers_of_the_layers(tiny_model: Path, dtype: Any) -> None:
    plain, compiled = (
        awake(PolicySpec(str(tiny_model), dtype=dtype, lora=LoraSpec(r=4), compile=on)) for on in (False, True)
    )
    wanted, got = (loss_of(shared_logps(model, PROMPT, COMPLETIONS)) for model in (plain, compiled))
    rounding = 1e-5 if dtype == "float32" else 2e-2
    torch.testing.assert_close(got, wanted, atol=rounding, rtol=rounding)
    for loss in (wanted, got):
        loss.backward()
    expected, found = gradients(plain), gradients(compiled)
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    assert graphs() > 0 and found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=rounding * scale, rtol=rounding, msg=name)


@pytest.mark.parametrize("name", ["qwen3", "gpt_neox", "gemma2_caps", "gemma3_window"])
def test_equal_to_plain_rows(name: str, traced: None) -> None:
    config = deepcopy(CONFIGS[name])
    config.num_hidden_layers = 2 if name == "gemma2_caps" else 1  # only Gemma 2 has layers of two kinds
    model = make_model(config, "eager" if name == "gemma2_caps" else "sdpa")
    compile_layers(model)
    assert_same(model)
    assert graphs() > 0


@pytest.mark.parametrize(("quantization", "checkpointing"), [(None, False), ("nf4", True)])
def test_equal_under_lora(one_layer: Path, quantization: Any, checkpointing: Any, traced: None) -> None:
    spec = PolicySpec(
        str(one_layer),
        dtype="float32",
        quantization=quantization,
        lora=LORA,
        gradient_checkpointing=checkpointing,
        compile=True,
    )
    assert_same(awake(spec))
    assert graphs() > 0


def test_lengths_do_not_compile_anew(one_layer: Path, traced: None) -> None:
    model = load_model(PolicySpec(str(one_layer), dtype="bfloat16", lora=LORA, compile=True))
    backward(model, 4, 5, 6)
    first = graphs()
    for lengths in ((3, 9, 2), (11, 2, 4, 6), (7, 7, 5), (2, 13, 6, 8, 9)):
        backward(model, *lengths)
    assert 0 < graphs() == first


def test_what_is_not_trained_is_not_compiled(tiny_model: Path, traced: None) -> None:
    policy = load_model(PolicySpec(str(tiny_model), lora=LORA, compile=True))
    with torch.no_grad():
        shared_logps(policy, PROMPT, COMPLETIONS)
        plain_logps(policy, PROMPT, COMPLETIONS)
    sampler = TransformersSampler(num_candidates=2, max_new_tokens=3)
    sampler.sample(sampling_request(policy, tiny_tokenizer(), [[5, 6, 7]], stop_ids=[2]))
    assert graphs() == 0


def test_a_copy_runs_its_own_weights(one_layer: Path, traced: None) -> None:
    policy = load_model(PolicySpec(str(one_layer), compile=True))
    copied = deepcopy(policy)
    before = loss_of(shared_logps(copied, PROMPT, COMPLETIONS))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    for graded in (True, False):
        with torch.set_grad_enabled(graded):
            assert torch.equal(loss_of(shared_logps(copied, PROMPT, COMPLETIONS)), before)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_ends_as_without(one_layer: Path, tmp_path: Path, precision: Any, traced: None) -> None:
    def trained(compile: bool) -> dict[str, Tensor]:
        torch.manual_seed(3)
        spec = PolicySpec(str(one_layer), dtype="float32", lora=LORA, compile=compile)
        module = AlignmentModule(spec, DPO(), optimizer=adamw)
        trainer(tmp_path, precision=precision, accumulate_grad_batches=2).fit(module, loader())
        return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    torch.testing.assert_close(trained(True), trained(False), atol=1e-5 if precision == "32-true" else 1e-3, rtol=1e-3)
    assert graphs() > 0


def test_names_of_weights_stay(tiny_model: Path) -> None:
    names = [load_model(PolicySpec(str(tiny_model), lora=LORA, compile=on)).state_dict().keys() for on in (True, False)]
    assert names[0] == names[1]


def test_reward_models_are_compiled(one_layer: Path, traced: None) -> None:
    def scores(compile: bool) -> tuple[Tensor, dict[str, Tensor]]:
        spec = PolicySpec(str(one_layer), dtype="float32", lora=LORA, compile=compile)
        model = awake(spec, load_reward_model)
        found = model(input_ids=PROMPT.ids, attention_mask=PROMPT.mask.long()).logits
        found.sum().backward()
        return found.detach(), gradients(model)

    torch.testing.assert_close(scores(True), scores(False), atol=1e-5, rtol=1e-4)
    assert graphs() > 0


def test_a_model_without_named_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear does not say which"):
        compile_layers(nn.Linear(2, 2))


@pytest.mark.parametrize("load", [load_model, load_reward_model])
def test_offload_is_refused(tiny_model: Path, load: Callable[[PolicySpec], nn.Module]) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        load(PolicySpec(str(tiny_model), lora=LORA, gradient_checkpointing="offload", compile=True))


def test_a_compiler_that_fails_is_named_with_what_to_do(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: object) -> Any:
        raise OSError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda function, **_: torch_compile(function, backend=backend))
    policy = load_model(PolicySpec(str(tiny_model), lora=LORA, compile=True))
    with pytest.raises(RuntimeError, match=r"could not compile a LlamaDecoderLayer(.|\n)*no compiler here(.|\n)*false"):
        shared_logps(policy, PROMPT, COMPLETIONS)
