"""Models of many families, rows for them, and what their log-probs and gradients are compared with."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    HeliumConfig,
    HunYuanDenseV1Config,
    HyperCLOVAXConfig,
    Llama4TextConfig,
    MistralConfig,
    MixtralConfig,
    NanoChatConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PhimoeConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from lit_align.batch import Padded
from lit_align.policy import plain_logps, shared_logps
from tests.helpers.tiny import tiny_llama_config

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
DECODER: dict[str, Any] = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
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


def make_model(config: PretrainedConfig, attention: str | None = "eager") -> PreTrainedModel:
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation=attention).eval()
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


def values(parts: list) -> torch.Tensor:
    return torch.cat([one.logps[one.mask] for one in parts]).detach()


NARROW = rows(9, 4, seed=1), [rows(6, 3, seed=2), rows(4, 9, seed=3)]
EXPERTS = {**DECODER, "output_router_logits": True}
MIXTURES: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**EXPERTS, num_local_experts=4),
    "qwen2_moe": Qwen2MoeConfig(**EXPERTS, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32),
    "qwen3_moe": Qwen3MoeConfig(
        **{**EXPERTS, "head_dim": 8}, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "olmoe": OlmoeConfig(**EXPERTS, num_experts=4, num_experts_per_tok=2, eos_token_id=2),
    "granitemoe": GraniteMoeConfig(**EXPERTS, num_local_experts=4),
    "phimoe": PhimoeConfig(**EXPERTS, num_local_experts=4),
    "gpt_oss": GptOssConfig(
        **EXPERTS, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    ),
}  # fmt: skip
ATTENTIVE: dict[str, PretrainedConfig] = {
    "llama4_chunks": Llama4TextConfig(
        **DECODER,
        head_dim=8,
        intermediate_size_mlp=64,
        attention_chunk_size=4,
        num_local_experts=2,
        num_experts_per_tok=1,
        moe_layers=[1],
        layer_types=["chunked_attention", "full_attention"],
        attn_temperature_tuning=False,
    ),
    "olmo2": Olmo2Config(**DECODER),
    "olmo3": Olmo3Config(**DECODER, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "smollm3": SmolLM3Config(**DECODER, no_rope_layers=[1, 0]),
    "glm4": Glm4Config(**DECODER, head_dim=8),
    "cohere2": Cohere2Config(**DECODER, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "starcoder2": Starcoder2Config(**DECODER, sliding_window=4),
    "exaone4": Exaone4Config(**DECODER, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "ernie4_5": Ernie4_5Config(**DECODER, head_dim=8),
    "hunyuan": HunYuanDenseV1Config(**DECODER, head_dim=8),
    "helium": HeliumConfig(**DECODER, head_dim=8),
    "hyperclovax_scales": HyperCLOVAXConfig(**DECODER, logits_scaling=0.3),
    "granitemoe_scales": GraniteMoeConfig(**DECODER, num_local_experts=4, logits_scaling=3.0),
    "nanochat_caps": NanoChatConfig(**DECODER, final_logit_softcapping=0.5),
}
"""More architectures, with windows that rows of a few tokens are longer than."""
