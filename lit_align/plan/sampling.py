"""Samples with the real sampler, without computing, and counts the memory that it holds."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from lit_align.plan.setup import Setup
from lit_align.plan.tracker import KV_CACHE, MemoryTracker
from lit_align.sampling.decode import Batch, CandidateRequest, Limits, can_share, sample_plain
from lit_align.sampling.draw import Draw
from lit_align.sampling.generate import undisturbed


@torch.no_grad()
def sample(
    setup: Setup, tracker: MemoryTracker, model: nn.Module, progress: Callable[[], object]
) -> tuple[Counter[str], Counter[str]]:
    """Returns bytes by item at the peak of drawing the last token of each row, and of computing the next prompts."""
    with undisturbed(model) as generator, tracker.watching(generator):
        hook = generator.register_forward_pre_hook(
            lambda _, args, kwargs: _mark_cache(tracker, kwargs.get("past_key_values")), with_kwargs=True
        )
        peaks = []
        for peak in (_sample_shared if can_share(generator) else _sample_plain)(setup, tracker, generator):
            peaks.append(peak)
            progress()
        hook.remove()
    return peaks[0], peaks[1]


def _sample_shared(setup: Setup, tracker: MemoryTracker, generator: Any) -> Iterator[Counter[str]]:
    """Runs a batch up to the last token of its rows, then the prompts of the next one, which take the same places."""
    prompts = max(1, setup.sequences // setup.candidates)
    rows = min(setup.sequences, prompts * setup.candidates)
    batch = Batch(generator, setup.sequences, _limits(setup, setup.new_tokens))
    list(batch.admit(_requests(rows, setup.candidates, 1)))
    _mark_cache(tracker, batch.cache)
    if batch.rows:
        batch.skip_to_last_token(setup.prompt_tokens + setup.new_tokens - 2)  # the cache lacks the token drawn last
    tracker.restart()
    if batch.rows:
        list(batch.step())
    yield tracker.peak
    tracker.restart()
    list(batch.admit(_requests(rows, setup.candidates, setup.prompt_tokens)))
    yield tracker.peak


def _sample_plain(setup: Setup, tracker: MemoryTracker, generator: Any) -> Iterator[Counter[str]]:
    """Runs rows that lack their last two tokens, and counts the last one; then the prompts, one for each row."""
    hook = generator.register_forward_pre_hook(lambda *_: tracker.restart())
    for num_tokens in (min(2, setup.new_tokens), 1):
        requests = _requests(setup.sequences, 1, setup.prompt_tokens + (setup.new_tokens - 2 if num_tokens == 2 else 0))
        list(sample_plain(generator, requests, setup.sequences, _limits(setup, num_tokens)))
        yield tracker.peak
    hook.remove()


def _requests(rows: int, candidates: int, tokens: int) -> list[CandidateRequest]:
    return [CandidateRequest(row // candidates, row % candidates, [0] * tokens, key=0) for row in range(rows)]


def _limits(setup: Setup, new_tokens: int) -> Limits:
    return Limits(setup.draw or Draw(0.0, 0, 1.0), (), 0, new_tokens, new_tokens)


def _mark_cache(tracker: MemoryTracker, cache: Any) -> None:
    """Counts tensors that a cache makes as `KV_CACHE`. The weak reference avoids a cycle, so it is freed after use."""
    for name in {"update", "admit", "before_token", "widen"} & set(dir(cache)):
        method = partial(getattr(type(cache), name), weakref.proxy(cache))
        setattr(cache, name, tracker.counting_as(KV_CACHE)(method))
