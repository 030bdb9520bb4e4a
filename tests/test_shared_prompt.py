"""The prompt once for all its completions, against one plain row each: log-probs and gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from lit_align.batch import Padded
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, plain_logps, shared_logps
from lit_align.policy import head as head_module
from lit_align.policy.head import token_logps
from lit_align.policy.shared_prompt import PADDING, shared_rows
from tests.tiny import save_tiny_model, tiny_llama_config

SMALL = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
DECODER = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": tiny_llama_config(),
    "qwen2": Qwen2Config(**DECODER),
    "qwen2_window": Qwen2Config(**DECODER, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": Qwen3Config(**DECODER, head_dim=8),
    "mistral_window": MistralConfig(**DECODER, sliding_window=4),
    "phi": PhiConfig(**{**DECODER, "num_key_value_heads": 4}),
    "phi3": Phi3Config(**DECODER),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=64),
    "gemma": GemmaConfig(**DECODER, head_dim=8),
    "gemma2_caps": Gemma2Config(**DECODER, head_dim=8, sliding_window=4, final_logit_softcapping=0.5),
    "gemma3_window": Gemma3TextConfig(**DECODER, head_dim=8, sliding_window=4),
    "granite_scales": GraniteConfig(**DECODER, logits_scaling=7.0),
    "cohere_scales": CohereConfig(**DECODER, logit_scale=0.2),
    "gpt2": GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
}


def make(config: PretrainedConfig, attention: str = "eager") -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():  # away from the tiny initial values, so that attention and logits differ
        parameter.data.mul_(4)
    return model


def rows(*lengths: int, seed: int = 0) -> Padded:
    generator = torch.Generator().manual_seed(seed)
    return Padded.from_sequences([torch.randint(3, 320, (n,), generator=generator).tolist() for n in lengths], 3)


PROMPT = rows(9, 2, 1, seed=1)
COMPLETIONS = [rows(6, 3, 8, seed=2), rows(1, 9, 4, seed=3), rows(5, 5, 2, seed=4)]


def loss_of(parts: list) -> Tensor:
    """A sum that gives each token of each completion a weight of its own."""
    values = torch.cat([one.logps[one.mask] for one in parts])
    return (values * torch.linspace(-1, 2, len(values))).sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(model: nn.Module) -> None:
    plain, shared = plain_logps(model, PROMPT, COMPLETIONS), shared_logps(model, PROMPT, COMPLETIONS)
    for one, other in zip(plain, shared, strict=True):
        torch.testing.assert_close(other.logps[other.mask], one.logps[one.mask], atol=1e-5, rtol=1e-5)
        assert torch.equal(one.lengths, other.lengths)
    loss_of(plain).backward()
    wanted = gradients(model)
    loss_of(shared).backward()
    got = gradients(model)
    assert wanted and wanted.keys() == got.keys()
    scale = max(gradient.abs().max().item() for gradient in wanted.values())
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], atol=1e-5 * max(scale, 1), rtol=1e-4, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_plain_rows(name: str, attention: str) -> None:
    if name == "gemma2_caps" and attention == "sdpa":
        pytest.skip("transformers has no SDPA for Gemma 2")
    model = make(CONFIGS[name], attention)
    assert_same(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the check on the first batch accepts it
        forward = CompletionForward()
        forward(model, PROMPT, COMPLETIONS)
    assert forward._shares[model]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_equal_under_lora(tmp_path, quantization, checkpointing) -> None:
    folder = save_tiny_model(tmp_path / "model")
    spec = PolicySpec(
        str(folder),
        dtype="float32",
        quantization=quantization,
        lora=LoraSpec(r=4),
        gradient_checkpointing=checkpointing,
    )
    model = spec.load_model()
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
    model = make(CONFIGS["llama"], "sdpa")
    together = shared_logps(model, PROMPT, COMPLETIONS)
    for row in range(3):
        alone = shared_logps(
            model,
            Padded(PROMPT.ids[row : row + 1], PROMPT.mask[row : row + 1]),
            [Padded(c.ids[row : row + 1], c.mask[row : row + 1]) for c in COMPLETIONS],
        )
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.logps[row], other.logps[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_the_head_in_chunks_equals_the_head_at_once(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    monkeypatch.setattr(head_module, "CHUNK", 3)
    head = nn.Linear(8, 50).requires_grad_(trained)
    config = GraniteConfig(logits_scaling=3.0)
    hidden = torch.randn(10, 8, requires_grad=True)
    targets = torch.randint(50, (10,))
    weights = torch.randn(10)
    (token_logps(hidden, targets, head, config)[0] * weights).sum().backward()
    got, got_head = hidden.grad, head.weight.grad
    hidden.grad = head.weight.grad = None
    expected = torch.log_softmax(head(hidden) / 3, -1)[torch.arange(10), targets]
    (expected * weights).sum().backward()
    torch.testing.assert_close(got, hidden.grad)
    assert (got_head is None) != trained
    if trained:
        torch.testing.assert_close(got_head, head.weight.grad)


@pytest.mark.parametrize("chunk", [3, 256])
def test_collisions_are_those_of_the_whole_distribution(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(head_module, "CHUNK", chunk)
    model = make(CONFIGS["gemma2_caps"])
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
    model = make(CONFIGS["llama"], "sdpa")
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.numel() // out.shape[-1]))
    loss_of(shared_logps(model, PROMPT, COMPLETIONS)).backward()
    assert max(seen) == 4 and sum(seen) >= sum(int(c.mask.sum()) for c in COMPLETIONS)


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


@pytest.mark.parametrize("model", [lambda: Deaf(make(CONFIGS["llama"], "sdpa")), mamba], ids=["deaf", "mamba"])
def test_a_model_that_cannot_take_the_mask_gets_plain_rows_and_one_warning(model) -> None:
    model = model()
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
        CompletionForward()(make(CONFIGS["llama"]), empty, [rows(2)])
