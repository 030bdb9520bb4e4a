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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    Llama4TextConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from lit_align.policy import LoraSpec, PolicySpec
from lit_align.policy.load import load_model
from lit_align.records import Candidate, FinishReason
from lit_align.sampling import SamplingRequest, TransformersSampler, generate
from lit_align.sampling.decode import can_share, left_padded
from lit_align.sampling.draw import Draw
from lit_align.seeding import derive_seed
from tests.helpers.tiny import sampling_request, tiny_tokenizer

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
    return sampler.sample(sampling_request(model, tokenizer, PROMPTS, seed, stop_ids=stop_ids, **call))


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
    assert sampled.text == tokenizer.decode(list(free.token_ids[: until - 1]), skip_special_tokens=True)


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


def test_a_prompts_candidates_follow_its_seed_and_not_its_place(tiny_model: Path) -> None:
    model, tokenizer = load(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    sampler = TransformersSampler(num_candidates=2, max_new_tokens=6)

    def sampled(prompts: list[list[int]], seeds: list[int]) -> list[tuple[Candidate, ...]]:
        return sampler.sample(SamplingRequest(model, tokenizer, prompts, seeds, stop_ids=(), pad_id=0))

    first, second = sampled([[5, 6, 7], [8, 9]], [3, 4])
    assert sampled([[8, 9], [5, 6, 7], [8, 9]], [4, 3, 4]) == [second, first, second]
    assert sampled([[5, 6, 7]], [9]) != [first] and first[0] != first[1]
    with pytest.raises(ValueError, match="one seed for each of 1 prompts, got 2"):
        sampled([[5]], [1, 2])


def test_modes_come_back_after_an_error(tiny_model: Path) -> None:
    model = load(tiny_model).train()
    with pytest.raises(IndexError):
        TransformersSampler(max_new_tokens=2).sample(
            sampling_request(model, AutoTokenizer.from_pretrained(tiny_model), [[10**6]])
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


def test_a_prompt_is_computed_once_and_the_batch_stays_full(tiny_model: Path) -> None:
    model = load(tiny_model)
    done: list[Any] = []
    shapes: list[tuple[int, ...]] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    draw(model, tiny_model, num_candidates=2, batch_size=4, max_new_tokens=3, stop_ids=(), progress=done.append)
    # the prompts of 6 and 3 tokens and two tokens more of four candidates, then the prompts of 2 and 1 tokens
    assert shapes == [(2, 6), (4, 1), (4, 1), (2, 2), (4, 1), (4, 1)]
    assert done == [1] * 8
    done.clear()
    draw(model, tiny_model, num_candidates=2, temperature=0.0, progress=done.append)
    assert done == [2] * 4
    handle.remove()


def test_finished_rows_leave_and_others_take_their_places(tiny_model: Path) -> None:
    model, rows = load(tiny_model), []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    stops = tuple(range(0, 320, 5))  # one token in five ends a candidate
    sampled = draw(model, tiny_model, num_candidates=16, batch_size=16, max_new_tokens=20, stop_ids=stops)
    handle.remove()
    tokens = sum(len(c.token_ids or ()) for one in sampled for c in one)
    steps = [shape[0] for shape in rows if shape[1] == 1 and shape[0] > 1]
    assert sum(shape[0] for shape in rows if shape[1] == 1) <= tokens - 64 + 1, "a finished row is not computed"
    assert max(steps) <= 16 and len({len(c.token_ids or ()) for one in sampled for c in one}) > 4


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_candidates_are_those_of_each_row_alone(tiny_model: Path, batch_size: int, temperature: float) -> None:
    """The whole row through the model for every token, without cache, padding or batch, with the same numbers."""
    model = lora(load(tiny_model)).eval()
    stops, least, most, seed = tuple(range(2, 320, 7)), 2, 70, 5  # 70: the cache grows past its first columns
    sampled = draw(
        model,
        tiny_model,
        num_candidates=3,
        batch_size=batch_size,
        temperature=temperature,
        top_p=0.9,
        min_new_tokens=least,
        max_new_tokens=most,
        stop_ids=stops,
        seed=seed,
    )
    picker = Draw(temperature, 0, 0.9)
    lengths = set()
    for i, prompt in enumerate(PROMPTS):
        for j, candidate in enumerate(sampled[i]):
            key = torch.tensor([derive_seed(derive_seed(seed, i), "draw", 0 if temperature == 0 else j)])
            new: list[int] = []
            while len(new) < most and not (new and new[-1] in stops):
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([prompt + new]), use_cache=False).logits[:, -1]
                if len(new) < least:
                    logits[:, list(stops)] = -torch.inf
                new.append(int(picker.tokens(logits, key, torch.tensor([len(new)]))))
            assert candidate.token_ids == tuple(new)
            lengths.add(len(new))
    assert temperature == 0 or len(lengths) > 3


def test_a_batch_that_is_refilled_for_long_stays_full_and_narrow(tiny_model: Path) -> None:
    model, tokenizer = load(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    prompts = [[3 + (7 * i + j) % 300 for j in range(1 + i % 9)] for i in range(60)]
    sampler = TransformersSampler(num_candidates=2, max_new_tokens=30, batch_size=8)
    stops, steps, columns = tuple(range(0, 320, 6)), [], []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] == 1:
            steps.append(len(kwargs["input_ids"]))
            columns.append(kwargs["attention_mask"].shape[1])

    handle = model.model.register_forward_pre_hook(look, with_kwargs=True)
    request = sampling_request(model, tokenizer, prompts, seed=7, stop_ids=stops)
    sampled = sampler.sample(request)
    handle.remove()
    while_waiting = [rows for rows in steps[: len(steps) // 2] if rows > 2]  # prompts of one token are not counted
    assert sum(while_waiting) / len(while_waiting) > 6.5 and max(steps) == 8
    assert len(steps) > 90 and max(columns) <= 9 + 30 + 64 < len(steps), "columns that no row needs are given up"
    one_by_one = TransformersSampler(num_candidates=2, max_new_tokens=30, batch_size=1)
    assert sampled == one_by_one.sample(request)


def tiny(kind: str) -> Any:
    common: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
    special: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    configs = {
        "mistral": lambda: MistralConfig(**common, **heads, **special, sliding_window=4),
        "gemma2": lambda: Gemma2Config(**common, **heads, **special, sliding_window=4),
        "gpt_neox": lambda: GPTNeoXConfig(**common, num_attention_heads=4, **special),
        "qwen3": lambda: Qwen3Config(**common, **heads, **special),
        "mamba": lambda: MambaConfig(vocab_size=320, hidden_size=32, state_size=4, num_hidden_layers=2, **special),
        "llama4": lambda: Llama4TextConfig(
            **common, **heads, **special, attention_chunk_size=4, num_local_experts=1, intermediate_size_mlp=64
        ),
    }
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(configs[kind]())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)  # answers that depend on what was read
    return model.float().eval()


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("mistral", True), ("gemma2", True), ("gpt_neox", True), ("qwen3", True), ("mamba", False), ("llama4", False)],
)
def test_families_are_sampled_alike(tiny_model: Path, kind: str, shared: bool) -> None:
    model = tiny(kind)
    assert can_share(model) is shared
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12] * 9, [14]] if shared else [[5, 6, 7], [12, 13, 14]]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    sampler = TransformersSampler(num_candidates=2, temperature=0.0, max_new_tokens=8, batch_size=2)
    sampled = sampler.sample(sampling_request(model, tokenizer, prompts))
    assert [one[1].token_ids for one in sampled] == [greedy_by_hand(model, prompt, 8) for prompt in prompts]


def test_without_shared_prompts_the_same_candidates_are_drawn(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stops = load(tiny_model), tuple(range(2, 320, 7))
    arguments: dict[str, Any] = {"num_candidates": 3, "batch_size": 5, "top_p": 0.9, "stop_ids": stops}
    shared = draw(model, tiny_model, **arguments)
    monkeypatch.setattr(generate, "can_share", lambda _: False)
    assert draw(model, tiny_model, **arguments) == shared


@pytest.mark.parametrize("shared", [True, False])
def test_out_of_memory_halves_the_batch_and_changes_no_candidate(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared: bool
) -> None:
    model, stops = load(tiny_model), tuple(range(2, 320, 7))
    done: list[Any] = []
    monkeypatch.setattr(generate, "can_share", lambda _: shared)
    arguments: dict[str, Any] = {"num_candidates": 4, "stop_ids": stops}
    plenty = draw(model, tiny_model, **arguments, batch_size=16)
    capsys.readouterr()
    rows: list[int] = []

    def small_card(module: Any, args: Any, kwargs: Any) -> None:
        rows.append(len(kwargs["input_ids"]))
        if len(rows) > 4 and rows[-1] > 4:  # a few tokens are drawn before the memory is full
            raise torch.OutOfMemoryError("no memory")

    model.model.register_forward_pre_hook(small_card, with_kwargs=True)
    sampler = TransformersSampler(max_new_tokens=12, batch_size=16)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    request = sampling_request(model, tokenizer, PROMPTS, 1, stop_ids=stops, num_candidates=4, progress=done.append)
    sampled = sampler.sample(request)
    assert sampled == plenty and sum(done) == 16
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "out of memory while sampling 16 candidates at once: 8 at once" in said[0]
    rows.clear()
    assert sampler.sample(request) == plenty and max(rows) <= 4, "the size is kept"
    assert not capsys.readouterr().out


def test_a_single_candidate_that_does_not_fit_is_an_error(tiny_model: Path) -> None:
    model = load(tiny_model)

    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    model.model.register_forward_pre_hook(no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        draw(model, tiny_model)


def test_broken_weights_are_named(tiny_model: Path) -> None:
    model = load(tiny_model)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        draw(model, tiny_model)


def test_sampled_ids_have_the_log_probs_of_the_model(tiny_model: Path) -> None:
    """-log p of sampled tokens is on average the entropy of what they were drawn from."""
    model = load(tiny_model).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight *= 4
    sampled = draw(model, tiny_model, num_candidates=40, max_new_tokens=20, stop_ids=(), batch_size=64)
    surprise, entropy, variance = 0.0, 0.0, 0.0
    for prompt, candidates in zip(PROMPTS, sampled, strict=True):
        rows = torch.tensor([[*prompt, *(c.token_ids or ())] for c in candidates])
        with torch.no_grad():
            logps = model(input_ids=rows).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
        of_token = logps.gather(-1, rows[:, len(prompt) :, None])[..., 0]
        means = -(logps.exp() * logps).sum(-1)
        surprise, entropy = surprise - float(of_token.sum()), entropy + float(means.sum())
        variance += float(((logps.exp() * logps.square()).sum(-1) - means.square()).sum())
    assert abs(surprise - entropy) < 4 * variance**0.5


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
    model: Any = load_model(spec)
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


def test_a_model_with_a_table_of_positions_is_not_asked_for_more() -> None:
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    request = sampling_request(GPT2LMHeadModel(config), tiny_tokenizer(), [[5, 6, 7, 8], [5]])
    ((first, *_), _) = TransformersSampler(max_new_tokens=12).sample(request)
    assert len(first.token_ids or ()) == 12
    with pytest.raises(ValueError, match="4 tokens and an answer of up to 13 .*16 positions.*at most 12 new tokens"):
        TransformersSampler(max_new_tokens=13).sample(request)
