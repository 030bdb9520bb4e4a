"""The sampler's cache, from one batch to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.sampling import TransformersSampler
from tests.helpers.tiny import sampling_request


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_that_ends_as_one_leaves_its_cache_to_shorter_prompts(tiny_model: Path, batch_size: int) -> None:
    """All rows are cut at the same step, in more columns than the next prompts are given."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    prompts = [[5 + n for n in range(40)], [6, 7, 8], [9]]

    def sampled(size: int) -> list[tuple[int, ...] | None]:
        sampler = TransformersSampler(2, max_new_tokens=90, batch_size=size)
        found = sampler.sample(sampling_request(model, tokenizer, prompts, seed=3))
        return [candidate.token_ids for one in found for candidate in one]

    assert sampled(batch_size) == sampled(6)
