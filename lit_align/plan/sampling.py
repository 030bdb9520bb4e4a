"""Samples on the meta device, as the sampler does, and counts what that holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from lit_align.plan.model import blank_rows, dtype_of
from lit_align.plan.tracker import KV_CACHE, MemoryTracker
from lit_align.policy.outputs import logits_alone
from lit_align.policy.shared_prompt import attention_mask, takes_mask
from lit_align.sampling.decode import can_share
from lit_align.sampling.draw import Draw
from lit_align.sampling.slots import SlotCache, with_room


@dataclass(frozen=True)
class Samples:
    """What sampling depends on.

    Args:
        rows: sequences at once.
        candidates: of a prompt, next to each other.
        prompt_tokens: of each prompt.
        new_tokens: drawn for each row.
        draw: draws them; None for greedy sampling.
    """

    rows: int
    candidates: int
    prompt_tokens: int
    new_tokens: int
    draw: Draw | None

    @property
    def prompts(self) -> int:
        """Prompts that are computed together at most: those whose candidates all fit in."""
        return max(1, self.rows // self.candidates)

    @property
    def used(self) -> int:
        """Rows that those candidates take."""
        return min(self.rows, self.prompts * self.candidates)


class _Prompts(DynamicCache):
    """The library's cache, whose tensors count as such."""

    def __init__(self, config: PretrainedConfig, tracker: MemoryTracker) -> None:
        super().__init__(config=config.get_text_config(decoder=True))
        self._tracker = tracker

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        with self._tracker.item(KV_CACHE):
            return super().update(*args, **kwargs)


@torch.no_grad()
def sample(samples: Samples, tracker: MemoryTracker, model: Any) -> tuple[Counter[str], Counter[str]]:
    """Bytes by item at the peak of computing prompts, and of drawing the tokens behind them."""
    model.eval()
    generator = model.get_base_model() if hasattr(model, "get_base_model") else model
    way = _sample_shared if can_share(generator) else _sample_plain
    return way(samples, tracker, model)


def _sample_shared(samples: Samples, tracker: MemoryTracker, model: Any) -> tuple[Counter[str], Counter[str]]:
    """A batch of rows up to the last token, and the prompts of the next one: its rows come where these were."""
    slots = SlotCache(model.config.get_text_config(decoder=True).num_hidden_layers, samples.rows)
    longest = samples.prompt_tokens + samples.new_tokens - 2  # the last token is in no cache, the one before is new
    _admit(samples, tracker, model, slots)
    tracker.restart()
    if samples.new_tokens > 1:
        _grow(samples, tracker, slots, longest)
        _draw(samples, _logits(model, samples.used, 1, slots))
    sampling = tracker.peak
    none = torch.empty(0, dtype=torch.long, device="meta")
    slots.move(none, none, 0)  # all rows are finished
    tracker.restart()
    _admit(samples, tracker, model, slots)
    return tracker.peak, sampling


def _admit(samples: Samples, tracker: MemoryTracker, model: Any, slots: SlotCache) -> None:
    index = torch.empty(samples.used, dtype=torch.long, device="meta")
    prefilled = _Prompts(model.config, tracker)
    logits = _logits(model, samples.prompts, samples.prompt_tokens, prefilled)
    _draw(samples, logits[index])
    with tracker.item(KV_CACHE):
        slots.admit(prefilled, index)


def _grow(samples: Samples, tracker: MemoryTracker, slots: SlotCache, longest: int) -> None:
    """To the columns that the longest row can need. Where rows begin at different times the cache may grow at any
    length, so that is reckoned to be the last one, with most room to spare."""
    layers: Sequence[Any] = slots.layers
    with tracker.item(KV_CACHE):
        for columns in (longest, with_room(longest)):
            for slot in layers:
                slot.make_room(samples.rows, columns, 0)
                slot.width = longest
            if columns == longest:
                tracker.restart()  # in a run the cache comes here in smaller steps


def _draw(samples: Samples, logits: Tensor) -> None:
    """The draw of each row's token; with a nucleus, that of a second one in every row."""
    draw = samples.draw
    if draw is None:
        return
    keys = torch.empty(len(logits), dtype=torch.long, device="meta")
    redraws = draw.top_p < 1 and not draw.top_k
    if not redraws:
        draw.tokens(logits, keys, keys)
        return
    tokens = Draw(draw.temperature, 0, 1.0).tokens(logits, keys, keys)
    scaled = logits.float() / draw.temperature
    held = [scaled, scaled.softmax(-1)]
    held.append(held[-1][keys])
    held.append(held[-1] * (held[-1] > held[-1].gather(-1, tokens[:, None])))


def _sample_plain(samples: Samples, tracker: MemoryTracker, model: Any) -> tuple[Counter[str], Counter[str]]:
    """The prompts, one for each row, and the last token drawn, with `generate`."""
    tracker.restart()
    cache: Any = _Prompts(model.config, tracker)
    _process(samples, _logits(model, samples.rows, samples.prompt_tokens, cache))
    prefill = tracker.peak
    tracker.restart()
    for layer in cache.layers:
        with tracker.item(KV_CACHE):
            shape = list(layer.keys.shape)
            shape[-2] = max(samples.new_tokens - 2, 0)
            layer.update(*(torch.empty(shape, dtype=layer.keys.dtype, device="meta") for _ in range(2)))
        tracker.restart()  # in a run the cache grows token by token
    _process(samples, _logits(model, samples.rows, 1, cache))
    return prefill, tracker.peak


def _process(samples: Samples, logits: Tensor) -> None:
    if samples.draw is not None:
        keys = torch.empty(len(logits), dtype=torch.long, device="meta")
        _draw(samples, logits)
        torch.full_like(logits, -torch.inf).scatter_(-1, keys[:, None], 0.0)


def _logits(model: Any, rows: int, tokens: int, cache: Any) -> Tensor:
    """[rows, V] behind that many new tokens of each row."""
    config, layout = model.config, blank_rows(rows, tokens)
    mask: Any = None
    if tokens > 1 and takes_mask(config):
        mask = attention_mask(layout, config, dtype_of(model))
    logits: Tensor = model(
        input_ids=layout.ids,
        attention_mask=mask if mask is not None else _all_seen(rows, config),
        position_ids=layout.positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **logits_alone(config),
    ).logits
    return logits[:, -1].float()


def _all_seen(rows: int, config: PretrainedConfig) -> Any:
    """A mask for one token, which may see all that the cache holds: one column stands for all."""
    seen = torch.empty(rows, 1, 1, 1, dtype=torch.bool, device="meta")
    kinds: Sequence[str] = sorted(set(getattr(config, "layer_types", None) or ()))
    return {kind: seen for kind in kinds} if len(kinds) > 1 else seen
