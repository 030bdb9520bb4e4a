"""The prompt once for all its completions, against one plain row each: log-probs and gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import flex_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    MambaConfig,
    PretrainedConfig,
)
from transformers.integrations.flex_attention import WrappedFlexAttention

from lit_align.batch import Padded
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, plain_logps, shared_logps
from lit_align.policy import head as head_module
from lit_align.policy.cpu import attention as attention_module
from lit_align.policy.cpu import segments
from lit_align.policy.head import token_logps
from lit_align.policy.load import keep_activations, load_model
from lit_align.policy.shared_prompt import PADDING, shared_rows
from tests.helpers.row_models import (
    COMPLETIONS,
    CONFIGS,
    PROMPT,
    assert_same,
    gradients,
    loss_of,
    make_model,
    rows,
)
from tests.helpers.tiny import save_tiny_model


@pytest.mark.parametrize("attention", ["segments", "sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_plain_rows(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if attention == "segments":
        monkeypatch.setattr(attention_module, "LONG_ROW", 1)
        attention = "sdpa"
    if name == "gemma2_caps" and attention == "sdpa":
        pytest.skip("transformers has no SDPA for Gemma 2")
    model = make_model(CONFIGS[name], attention)
    assert_same(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the check on the first batch accepts it
        forward = CompletionForward()
        forward(model, PROMPT, COMPLETIONS)
    assert forward._checks[model].accepted


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_equal_under_lora(tmp_path: Path, quantization: Literal["nf4"] | None, checkpointing: bool) -> None:
    folder = save_tiny_model(tmp_path / "model")
    spec = PolicySpec(
        str(folder),
        dtype="float32",
        quantization=quantization,
        lora=LoraSpec(r=4),
        gradient_checkpointing=checkpointing,
    )
    model = load_model(spec)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    assert_same(model)


def test_layout_by_hand() -> None:
    prompt = Padded.from_sequences([[5, 6], [7]], 0)
    layout = shared_rows(
        prompt, [Padded.from_sequences([[10], [11, 12]], 0), Padded.from_sequences([[20, 21], [22]], 0)]
    )
    assert layout.ids.tolist() == [[5, 6, 10, 20, 21], [7, 11, 12, 22, 0]]
    assert layout.positions[0].tolist() == [0, 1, 2, 2, 3]
    assert layout.positions[1, :4].tolist() == [0, 1, 2, 1]
    assert layout.segments.tolist() == [[0, 0, 1, 2, 2], [0, 1, 1, 2, PADDING]]
    assert layout.predicting[0].tolist() == [[1, 2], [0, 1]]
    assert layout.predicting[1].tolist() == [[1, 3], [0, 3]]


def test_padding_and_batch_split_change_nothing() -> None:
    model = make_model(CONFIGS["llama"], "sdpa")
    together = shared_logps(model, PROMPT, COMPLETIONS)
    for row in range(3):
        alone = shared_logps(
            model,
            Padded(PROMPT.ids[row : row + 1], PROMPT.mask[row : row + 1]),
            [Padded(c.ids[row : row + 1], c.mask[row : row + 1]) for c in COMPLETIONS],
        )
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.logps[row], other.logps[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3_window"])
def test_packed_rows_of_flex_attention_equal_plain_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # compiling takes a minute
    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda self: flex_attention.flex_attention)
    packed = make_model(CONFIGS[name], "flex_attention")
    plain = make_model(CONFIGS[name])
    seen: list[torch.Size] = []
    packed.model.embed_tokens.register_forward_hook(lambda _, ids, __: seen.append(ids[0].shape))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        got = shared_logps(packed, PROMPT, COMPLETIONS)
        wanted = plain_logps(plain, PROMPT, COMPLETIONS)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.logps[one.mask], other.logps[other.mask], atol=1e-5, rtol=1e-5)
    tokens = sum(int(part.mask.sum()) for part in [PROMPT, *COMPLETIONS])
    assert seen == [torch.Size([1, tokens])]  # no padding at all


class WatchAttention(TorchFunctionMode):
    """Keeps what attention is given inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, ...]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is F.scaled_dot_product_attention:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))

    def dtypes(self) -> set[torch.dtype]:
        return {tensor.dtype for call in self.calls for tensor in call}


def shared_gradients(model: nn.Module) -> dict[str, Tensor]:
    loss_of(shared_logps(model, PROMPT, COMPLETIONS)).backward()
    return gradients(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_long_rows_are_attended_to_by_segments(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "LONG_ROW", 1)
    model = make_model(CONFIGS["llama"], "sdpa")
    if checkpointing:
        model.train()
        keep_activations(PolicySpec("", gradient_checkpointing=True), model)
    attention = segments._LongRow.attend
    long_rows: list[object] = []
    monkeypatch.setattr(segments._LongRow, "attend", lambda row, *of: long_rows.append(row) or attention(row, *of))
    with WatchAttention() as watch:
        shared_gradients(model)
    layer = []
    for row, prompt in enumerate(PROMPT.lengths.tolist()):
        layer += [(prompt, prompt), *((int(c.lengths[row]), prompt + int(c.lengths[row])) for c in COMPLETIONS)]
    layers = model.config.num_hidden_layers
    assert [(query.shape[-2], key.shape[-2]) for query, key, _ in watch.calls] == layer * layers
    runs = 2 if checkpointing else 1  # checkpointed layers run again in the backward, and in the same way
    assert len(long_rows) == runs * layers * len(PROMPT.ids)


def test_half_precision_is_attended_to_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = shared_gradients(make_model(CONFIGS["llama"], "sdpa"))
    model = make_model(CONFIGS["llama"], "sdpa").bfloat16()
    with WatchAttention() as differentiated:
        got = shared_gradients(model)
    with WatchAttention() as not_differentiated, torch.no_grad():
        shared_logps(model, PROMPT, COMPLETIONS)
    model.train()
    keep_activations(PolicySpec("", gradient_checkpointing=True), model)
    with WatchAttention() as checkpointed:
        again = shared_gradients(model)
    for watch in (differentiated, not_differentiated, checkpointed):
        assert watch.dtypes() == {torch.float32}
    for name, gradient in got.items():
        assert torch.equal(again[name], gradient), name
    monkeypatch.setattr(attention_module, "HALF_PRECISIONS", ())
    usual = shared_gradients(make_model(CONFIGS["llama"], "sdpa").bfloat16())
    for name, wanted in exact.items():  # as near to float32 as torch's own way, but for rounding
        error, allowed = ((one[name].float() - wanted).norm() for one in (got, usual))
        assert error <= 1.5 * allowed + 0.02 * wanted.norm(), name


@pytest.mark.parametrize("long_row", [1, 16, 512])
@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3_window"])
def test_half_precision_gives_the_same_digits_in_any_batch_with_and_without_gradients(
    name: str, long_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "LONG_ROW", long_row)
    model = make_model(CONFIGS[name], "sdpa").bfloat16()
    wanted = shared_logps(model, PROMPT, COMPLETIONS)
    with torch.no_grad():
        together = shared_logps(model, PROMPT, COMPLETIONS)
        for row in range(3):
            alone = shared_logps(model, row_of(PROMPT, row), [row_of(c, row) for c in COMPLETIONS])
            for one, same, other in zip(wanted, together, alone, strict=True):
                length = int(one.lengths[row])
                assert torch.equal(same.logps[row, :length], one.logps[row, :length])
                assert torch.equal(other.logps[0, :length], one.logps[row, :length])


def row_of(padded: Padded, row: int) -> Padded:
    """One row, without its padding."""
    length = int(padded.lengths[row])
    return Padded(padded.ids[row : row + 1, :length], padded.mask[row : row + 1, :length])


def test_under_autocast_a_prompt_is_shared_and_attended_to_in_float32() -> None:
    """Weights in float32, products in bfloat16: two ways to the same log-probs differ by what bfloat16 rounds."""
    model = make_model(CONFIGS["llama"], "sdpa")
    forward = CompletionForward()
    with torch.autocast("cpu", torch.bfloat16), WatchAttention() as watch, warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(forward(model, PROMPT, COMPLETIONS)).backward()
        plain = loss_of(plain_logps(model, PROMPT, COMPLETIONS)).item()
    assert (
        forward._checks[model].accepted and abs(plain - loss_of(plain_logps(model, PROMPT, COMPLETIONS)).item()) > 1e-2
    )
    shared = [call for call in watch.calls if call[0].shape[-2] == 21 and call[0].requires_grad]
    assert len(shared) == model.config.num_hidden_layers  # of the one row of 21 tokens
    assert {tensor.dtype for call in shared for tensor in call} == {torch.float32}


BLOCK_SIZES = [(3, 7), (4, 64), (512, 1024)]


@pytest.mark.parametrize("config", [GraniteConfig(logits_scaling=3.0), Gemma2Config(final_logit_softcapping=2.0)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("blocks", BLOCK_SIZES)
def test_the_head_in_pieces_equals_the_head_at_once(
    monkeypatch: pytest.MonkeyPatch, config: PretrainedConfig, bias: bool, trained: bool, blocks: tuple[int, int]
) -> None:
    monkeypatch.setattr(head_module, "CHUNK", 3)
    monkeypatch.setitem(head_module.BLOCKS, "cpu", blocks)
    head = nn.Linear(8, 50, bias=bias).requires_grad_(trained)
    head.weight.data.mul_(20)  # peaked distributions, whose top moves from block to block
    hidden = torch.randn(10, 8, requires_grad=True)
    targets = torch.randint(50, (10,))
    weights = torch.randn(10)
    values, collided = token_logps(hidden, targets, head, config, with_collisions=True)
    (values * weights).sum().backward()
    got, got_head = hidden.grad, head.weight.grad
    hidden.grad = head.weight.grad = None
    logits = head(hidden)
    logits = logits / 3 if isinstance(config, GraniteConfig) else 2 * torch.tanh(logits / 2)
    expected = torch.log_softmax(logits, -1)
    (expected[torch.arange(10), targets] * weights).sum().backward()
    torch.testing.assert_close(values, expected[torch.arange(10), targets], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got, hidden.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(collided, expected.exp().square().sum(-1).log(), atol=1e-5, rtol=1e-5)
    assert not collided.requires_grad and (got_head is None) != trained
    if trained:
        torch.testing.assert_close(got_head, head.weight.grad, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        again, nothing = token_logps(hidden, targets, head, config)
    torch.testing.assert_close(again, values.detach(), atol=1e-6, rtol=1e-6)
    assert nothing is None and not again.requires_grad


def test_the_head_survives_extreme_logits() -> None:
    head = nn.Linear(1, 3000, bias=False).requires_grad_(False)
    head.weight.data = torch.linspace(-1, 1, 3000)[:, None]
    hidden = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    values, _ = token_logps(hidden, torch.tensor([2999, 2999, 5]), head, PretrainedConfig())
    assert values[1:].tolist() == pytest.approx([-2e4, -math.log(3000)], rel=1e-5)
    values.sum().backward()
    assert hidden.grad.isfinite().all()


def test_a_half_precision_head_is_as_exact_as_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_module.BLOCKS, "cpu", (4, 64))
    head = nn.Linear(16, 500, bias=False).bfloat16().requires_grad_(False)
    hidden = torch.randn(9, 16).bfloat16().requires_grad_()
    targets = torch.randint(500, (9,))
    values, _ = token_logps(hidden, targets, head, PretrainedConfig())
    values.sum().backward()
    exact = hidden.detach().float().requires_grad_()
    wanted = -F.cross_entropy(head(hidden).detach().float(), targets, reduction="none")
    torch.testing.assert_close(values, wanted, atol=1e-5, rtol=1e-5)
    (-F.cross_entropy(exact @ head.weight.float().t(), targets, reduction="sum")).backward()
    assert hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(hidden.grad.float(), exact.grad, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("blocks", BLOCK_SIZES)
def test_collisions_are_those_of_the_whole_distribution(
    monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int]
) -> None:
    monkeypatch.setitem(head_module.BLOCKS, "cpu", blocks)
    model = make_model(CONFIGS["gemma2_caps"])
    for way in (shared_logps, plain_logps):
        one = way(model, PROMPT, COMPLETIONS[:1], with_collisions=True)[0]
        ids = torch.cat([PROMPT.ids[0][PROMPT.mask[0]], COMPLETIONS[0].ids[0][COMPLETIONS[0].mask[0]]])
        probabilities = model(input_ids=ids[None]).logits[0].float().softmax(-1)[PROMPT.mask[0].sum() - 1 : -1]
        assert not one.collisions.requires_grad
        wanted = probabilities.square().sum(-1).log()
        torch.testing.assert_close(one.collisions[0, : len(wanted)], wanted, atol=1e-5, rtol=1e-5)
        assert (one.collisions[~one.mask] == 0).all()


def test_no_more_logits_than_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK", 4)
    model = make_model(CONFIGS["llama"], "sdpa")  # its head is trained
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.numel() // out.shape[-1]))
    loss_of(shared_logps(model, PROMPT, COMPLETIONS)).backward()
    assert max(seen) == 4 and sum(seen) >= sum(int(c.mask.sum()) for c in COMPLETIONS)


def test_a_frozen_head_never_makes_a_row_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_module.BLOCKS, "cpu", (4, 32))
    head = nn.Linear(8, 320, bias=False).requires_grad_(False)
    widest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal widest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() != head.weight.data_ptr():
                widest = max(widest, out.numel())
            return out

    with Watch():
        hidden = torch.randn(20, 8, requires_grad=True)
        token_logps(hidden, torch.randint(320, (20,)), head, PretrainedConfig())[0].sum().backward()
    assert widest <= max(20 * 8, 4 * 32)


class Deaf(nn.Module):
    """Wraps a model that drops the mask it is given: its completions see each other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, attention_mask: Tensor, **kwargs: object) -> object:
        return self.model(**kwargs)

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()


def mamba() -> nn.Module:
    return AutoModelForCausalLM.from_config(MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1)).eval()


@pytest.mark.parametrize("make", [lambda: Deaf(make_model(CONFIGS["llama"], "sdpa")), mamba], ids=["deaf", "mamba"])
def test_a_model_that_cannot_take_the_mask_gets_plain_rows_and_one_warning(make: Callable[[], nn.Module]) -> None:
    model = make()
    forward = CompletionForward()
    with pytest.warns(UserWarning, match="a row of its own"):
        first = forward(model, PROMPT, COMPLETIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = forward(model, PROMPT, COMPLETIONS)
    for one, other, wanted in zip(first, again, plain_logps(model, PROMPT, COMPLETIONS), strict=True):
        assert torch.equal(one.logps, wanted.logps) and torch.equal(other.logps, wanted.logps)


def test_an_empty_prompt_is_refused() -> None:
    empty = Padded(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one token"):
        CompletionForward()(make_model(CONFIGS["llama"]), empty, [rows(2)])
