"""The prompt once for all its completions, against one plain row each: log-probs and gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    MambaConfig,
    PretrainedConfig,
)

from lit_align.batch import Padded
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, plain_logps, shared_logps, span_attention
from lit_align.policy import head as head_module
from lit_align.policy.head import token_logps
from lit_align.policy.load import keep_activations, load_model
from lit_align.shared_rows import Span, lay_out
from tests.helpers.row_models import (
    ATTENTIVE,
    COMPLETIONS,
    CONFIGS,
    MIXTURES,
    PROMPT,
    assert_same,
    gradients,
    loss_of,
    make_model,
    rows,
)
from tests.helpers.tiny import save_tiny_model

ATTEND = {**CONFIGS, **ATTENTIVE, **MIXTURES}


@pytest.mark.parametrize(
    ("name", "attention"), [*((name, None) for name in ATTEND), ("llama", "eager"), ("gemma3_window", "eager")]
)
def test_equal_to_plain_rows(name: str, attention: str | None) -> None:
    model = make_model(ATTEND[name], attention)
    plain = plain_logps(model, PROMPT, COMPLETIONS)
    assert_same(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the check on the first batch accepts it
        forward = CompletionForward()
        forward(model, PROMPT, COMPLETIONS)
    assert forward._checks[model].accepted
    for before, after in zip(plain, plain_logps(model, PROMPT, COMPLETIONS), strict=True):
        assert torch.equal(before.logps, after.logps)  # a row of its own is computed as ever


@pytest.mark.parametrize("block", [1, 3, 5])
@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma2_caps", "gpt_oss", "llama4_chunks"])
def test_blocks_of_queries_change_nothing(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_attention, "BLOCK", block)
    assert_same(make_model(ATTEND[name], None))


@pytest.mark.parametrize("name", ["llama", "gemma3_window", "qwen3_moe"])
def test_checkpointed_layers_attend_again_by_the_layout(name: str) -> None:
    model = make_model(ATTEND[name], None)
    wanted = shared_gradients(model)
    model.train()
    keep_activations(PolicySpec("", gradient_checkpointing=True), model)
    got = shared_gradients(model)
    assert wanted and all(torch.equal(got[key], gradient) for key, gradient in wanted.items())


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3_window", "gpt_neox"])
def test_generation_and_padded_prompts_are_as_before(name: str) -> None:
    model = make_model(ATTEND[name], None)
    ids = torch.arange(3, 15).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])

    def answers() -> Any:
        return model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )

    before = answers()
    shared_logps(model, PROMPT, COMPLETIONS)
    after = answers()
    assert torch.equal(before.sequences, after.sequences)
    torch.testing.assert_close(torch.stack(after.logits), torch.stack(before.logits), atol=0, rtol=0)


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
    rows = lay_out([2, 1], [[1, 2], [2, 0]], [2, 2, 2])
    ids = torch.tensor([5, 6, 7, 0, 10, 0, 11, 12, 20, 21, 0, 0])  # prompts, then the two completions, each [2, 2]
    assert ids[rows.source].tolist() == [5, 6, 10, 20, 21, 7, 11, 12]
    assert rows.positions.tolist() == [[0, 1, 2, 2, 3, 0, 1, 2]]
    assert rows.columns.tolist() == [2, 6, 7, 3, 4] and rows.predicting.tolist() == [1, 5, 6, 1, 3]
    assert rows.slots.tolist() == [0, 2, 3, 0, 1] and rows.counts == (3, 2)
    layout = rows.layout
    assert layout.spans == (Span(2, None, 0), Span(1, 0, 2), Span(2, 0, 2), Span(1, None, 0), Span(2, 3, 1))
    assert layout.keys.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5, 5, 6, 7]
    assert layout.uses.tolist() == [
        [0, 2, 5], [1, 3, 6], [4, 13, 13], [7, 13, 13], [8, 13, 13], [9, 10, 13], [11, 13, 13], [12, 13, 13]
    ]  # fmt: skip
    assert layout.query_ends.tolist() == [0, 2, 3, 5, 6, 8] and layout.key_ends.tolist() == [0, 2, 5, 9, 10, 13]
    assert (layout.most_queries, layout.most_keys) == (2, 4)


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


def test_each_span_attends_to_its_prompt_and_itself_alone() -> None:
    model = make_model(CONFIGS["llama"], "sdpa")
    with WatchAttention() as watch:
        shared_gradients(model)
    layer = []
    for row, prompt in enumerate(PROMPT.sizes):
        layer += [(prompt, prompt), *((c.sizes[row], prompt + c.sizes[row]) for c in COMPLETIONS)]
    assert [(query.shape[-2], key.shape[-2]) for query, key, _ in watch.calls] == layer * model.config.num_hidden_layers


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma2_caps"])
def test_memory_of_attention_grows_with_the_row_not_with_its_square(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_attention, "BLOCK", 8)
    model = make_model(CONFIGS[name], None)
    largest = []
    for size in (200, 400):
        with WatchSizes() as watch:
            loss_of(shared_logps(model, rows(size), [rows(size, seed=1), rows(size, seed=2)])).backward()
        largest.append(watch.largest)
    assert largest[1] <= 2.1 * largest[0]


class WatchSizes(TorchDispatchMode):
    """Keeps the most elements that a new tensor has inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return out


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
    monkeypatch.setattr(span_attention, "HALF_PRECISIONS", ())
    usual = shared_gradients(make_model(CONFIGS["llama"], "sdpa").bfloat16())
    for name, wanted in exact.items():  # as near to float32 as torch's own way, but for rounding
        error, allowed = ((one[name].float() - wanted).norm() for one in (got, usual))
        assert error <= 1.5 * allowed + 0.02 * wanted.norm(), name


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3_window"])
def test_half_precision_gives_the_same_digits_in_any_batch_with_and_without_gradients(name: str) -> None:
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
    shared = [call for call in watch.calls if call[1].shape[-2] == 15 > call[0].shape[-2] and call[0].requires_grad]
    assert len(shared) == model.config.num_hidden_layers  # of the one completion that makes 15 tokens with its prompt
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
