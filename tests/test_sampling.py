from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.policy import LoraSpec, PolicySpec
from lit_align.records import Candidate, FinishReason
from lit_align.sampling import TransformersSampler
from lit_align.sampling.generate import left_padded

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16]]
STOP = 2


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def lora(model: Any) -> Any:
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return adapted


def draw(model: Any, folder: Path, **arguments: Any) -> list[tuple[Candidate, ...]]:
    call = {key: arguments.pop(key) for key in ("num_candidates", "progress") if key in arguments}
    seed, stop_ids = arguments.pop("seed", 1), arguments.pop("stop_ids", (STOP,))
    sampler = TransformersSampler(**{"max_new_tokens": 12, **arguments})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return sampler.sample(model, tokenizer, PROMPTS, stop_ids=stop_ids, pad_id=0, seed=seed, **call)


def ids(sampled: list[tuple[Candidate, ...]]) -> list[list[tuple[int, ...] | None]]:
    return [[candidate.token_ids for candidate in candidates] for candidates in sampled]


def greedy_by_hand(model: Any, prompt: list[int], tokens: int) -> tuple[int, ...]:
    """The whole row through the model again for each token: no cache, no padding, no batch."""
    row = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
            row.append(int(logits.argmax()))
    return tuple(row[len(prompt) :])


@pytest.mark.parametrize("wrap", [lambda model: model, lora], ids=["plain", "adapter"])
def test_temperature_zero_is_greedy_decoding_of_each_prompt_alone(tiny_model: Path, wrap: Callable[[Any], Any]) -> None:
    model = wrap(load(tiny_model)).eval()
    sampled = draw(model, tiny_model, temperature=0.0, num_candidates=2, stop_ids=(), batch_size=3)
    for prompt, candidates in zip(PROMPTS, sampled, strict=True):
        assert [c.token_ids for c in candidates] == [greedy_by_hand(model, prompt, 12)] * 2
        assert {c.finish_reason for c in candidates} == {FinishReason.LENGTH}


def test_the_adapter_is_on(tiny_model: Path) -> None:
    adapted = lora(load(tiny_model))
    with_adapter = ids(draw(adapted, tiny_model, temperature=0.0))
    with adapted.disable_adapter():
        without = ids(draw(adapted, tiny_model, temperature=0.0))
    assert without == ids(draw(load(tiny_model), tiny_model, temperature=0.0)) != with_adapter


def test_the_same_seed_draws_the_same_and_another_seed_does_not(tiny_model: Path) -> None:
    model = load(tiny_model)
    first = draw(model, tiny_model, seed=3)
    torch.manual_seed(99)
    assert draw(model, tiny_model, seed=3) == first
    assert draw(model, tiny_model, seed=4) != first
    assert len({c.token_ids for c in first[0]}) == 4, "the candidates of a prompt are drawn apart"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_follow_the_model_s_distribution(tiny_model: Path, dtype: torch.dtype) -> None:
    model = load(tiny_model, dtype).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight *= 8  # far from uniform
        expected = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].float().softmax(-1)
    sampled = draw(model, tiny_model, num_candidates=1500, max_new_tokens=1, min_new_tokens=0, batch_size=3000)
    drawn = torch.tensor([c.token_ids[0] for c in sampled[0] if c.token_ids])
    shares = drawn.bincount(minlength=len(expected)) / len(drawn)
    assert (shares - expected).abs().max() < 4 * float((expected * (1 - expected)).max() / 1500) ** 0.5 + 0.005


def test_top_k_one_and_a_tiny_top_p_are_greedy(tiny_model: Path) -> None:
    model = load(tiny_model)
    greedy = ids(draw(model, tiny_model, temperature=0.0))
    assert ids(draw(model, tiny_model, top_k=1)) == greedy
    assert ids(draw(model, tiny_model, top_p=1e-6)) == greedy


def test_the_stop_token_ends_a_candidate_and_stays_in_its_ids_only(tiny_model: Path) -> None:
    model, tokenizer = load(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    free = draw(model, tiny_model, min_new_tokens=0, stop_ids=())[0][0]
    assert free.token_ids is not None and free.finish_reason is FinishReason.LENGTH
    stop = free.token_ids[4]
    until = free.token_ids.index(stop) + 1
    sampled = draw(model, tiny_model, min_new_tokens=0, stop_ids=(stop,))[0][0]
    assert sampled.token_ids == free.token_ids[:until]
    assert sampled.finish_reason is FinishReason.STOP
    assert sampled.text == tokenizer.decode(free.token_ids[: until - 1], skip_special_tokens=True)


def test_min_new_tokens_puts_off_the_stop(tiny_model: Path) -> None:
    every_id = tuple(range(1, 300))
    model = load(tiny_model)
    at_once = draw(model, tiny_model, stop_ids=every_id, min_new_tokens=0)
    later = draw(model, tiny_model, stop_ids=every_id, min_new_tokens=5)
    shortest = [min(len(c.token_ids or ()) for one in sampled for c in one) for sampled in (at_once, later)]
    assert shortest == [1, 6]


def test_what_the_checkpoint_says_about_generation_changes_nothing(tiny_model: Path) -> None:
    model = load(tiny_model)
    plain = ids(draw(model, tiny_model))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_p = 0.9
    model.generation_config.suppress_tokens = list(range(3, 200))
    own = model.generation_config
    assert ids(draw(model, tiny_model)) == plain
    assert model.generation_config is own


def test_modes_gradients_and_random_state_are_as_before(tiny_model: Path) -> None:
    model = lora(load(tiny_model)).train()
    model.get_base_model().model.layers[0].eval()  # a mixture that train() or eval() would flatten
    batch = torch.tensor([PROMPTS[1]])
    modes = {name: module.training for name, module in model.named_modules()}

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    draw(model, tiny_model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate() and (states[2] == np.random.get_state()[1]).all()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {n for n, p in model.named_parameters() if p.grad is not None} == before.keys()
    after = gradients()
    assert before and all(torch.equal(before[name], after[name]) for name in before)


def test_modes_come_back_after_an_error(tiny_model: Path) -> None:
    model = load(tiny_model).train()
    with pytest.raises(IndexError):
        TransformersSampler(max_new_tokens=2).sample(
            model, AutoTokenizer.from_pretrained(tiny_model), [[10**6]], stop_ids=(STOP,), pad_id=0, seed=0
        )
    assert all(module.training for module in model.modules())


def test_gradient_checkpointing_leaves_the_cache_on(tiny_model: Path) -> None:
    model = load(tiny_model).train()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    widths: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    draw(model, tiny_model, stop_ids=())
    assert widths == [6] + [1] * 11, "after the prompt, one new token a forward"
    assert model.is_gradient_checkpointing and model.training


def test_batches_are_sorted_by_length_and_progress_counts_candidates(tiny_model: Path) -> None:
    model, done, shapes = load(tiny_model), [], []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    draw(model, tiny_model, num_candidates=2, batch_size=3, max_new_tokens=1, progress=done.append)
    handle.remove()
    assert shapes == [(3, 6), (3, 3), (2, 1)]  # prompts of 6, 3, 2, 1 tokens, two rows each
    assert done == [3, 3, 2]
    done.clear()
    draw(model, tiny_model, num_candidates=2, temperature=0.0, progress=done.append)
    assert sum(done) == 8


def test_candidates_belong_to_their_prompts(tiny_model: Path) -> None:
    model = load(tiny_model)
    sampled = draw(model, tiny_model, temperature=0.0, num_candidates=1, stop_ids=())
    alone = [greedy_by_hand(model, prompt, 12) for prompt in PROMPTS]
    assert len(set(alone)) == len(alone)
    assert [one[0].token_ids for one in sampled] == alone


def test_left_padding() -> None:
    rows, mask = left_padded([[1, 2, 3], [4]], pad_id=9)
    assert rows.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_sampling_a_4_bit_model_leaves_its_training_alone(tiny_model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    spec = PolicySpec(str(tiny_model), dtype="bfloat16", quantization="nf4", lora=LoraSpec(r=4))
    model: Any = spec.load_model()
    batch = torch.tensor([PROMPTS[1]])

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sampled = draw(model, tiny_model)
    after = gradients()
    assert [len(one) for one in sampled] == [4] * 4
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_candidates": 0},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_new_tokens": 5, "max_new_tokens": 4},
        {"batch_size": 0},
    ],
)
def test_arguments_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TransformersSampler(**wrong)
