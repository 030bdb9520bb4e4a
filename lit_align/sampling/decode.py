"""Ways from prompts to sampled ids: rows that come and go, or `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from lit_align.policy.outputs import logits_alone
from lit_align.sampling.draw import Draw, usable
from lit_align.sampling.slots import SlotCache, fits_slots

_FREE = 4
"""New rows are admitted when a quarter of the batch is free: each time costs a forward pass of its own."""


@dataclass(frozen=True)
class Ask:
    """One candidate to draw.

    Args:
        prompt: its place among the prompts.
        candidate: its place among the prompt's candidates.
        prompt_ids: the prompt.
        key: of its random numbers, int64.
    """

    prompt: int
    candidate: int
    prompt_ids: Sequence[int]
    key: int

    @property
    def place(self) -> tuple[int, int]:
        """Which candidate of which prompt it is; equal prompts may have equal keys."""
        return self.prompt, self.candidate


Found = Iterator[tuple[Ask, list[int]]]
"""Candidates as they are finished, with their ids, the stop id included."""


@dataclass(frozen=True)
class Limits:
    """How candidates are drawn and when they end.

    Args:
        draw: draws the tokens.
        stop_ids: a candidate ends at the first of these.
        pad_id: fills up shorter rows.
        least: no candidate ends before this many tokens.
        most: candidates are cut at this many tokens.
    """

    draw: Draw
    stop_ids: tuple[int, ...]
    pad_id: int
    least: int
    most: int


def can_share(generator: Any) -> bool:
    """Whether a model can be sampled by :func:`sample_shared`: its cache fits, and it takes what that gives it."""
    takes = inspect.signature(generator.forward).parameters
    wanted = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
    return wanted <= takes.keys() and fits_slots(generator.config)


def sample_shared(generator: Any, asks: Sequence[Ask], size: int, limits: Limits) -> Found:
    """Keeps a batch of up to `size` rows busy: a prompt is computed once for all of its candidates, a finished row
    leaves at once, and others take the free places.

    Args:
        generator: the model, in eval mode; see :func:`can_share`.
        asks: with the candidates of a prompt in a row, longest prompts first.
        size: rows at once.
        limits: how they are drawn and when they end.
    """
    batch = Batch(generator, min(size, len(asks)), limits)
    waiting = list(asks)
    while waiting or batch.rows:
        admitted = _next_in(waiting, size - len(batch.rows), size)
        if admitted:
            del waiting[: len(admitted)]
            yield from batch.admit(admitted)
        elif batch.rows:
            yield from batch.step()


def _next_in(waiting: Sequence[Ask], free: int, size: int) -> Sequence[Ask]:
    """Those of the waiting rows that fit in, by whole prompts unless the batch is empty."""
    if free < max(1, size // _FREE):
        return []
    whole = min(free, len(waiting))
    while 0 < whole < len(waiting) and waiting[whole].prompt == waiting[whole - 1].prompt:
        whole -= 1
    return waiting[: whole or (min(free, len(waiting)) if free == size else 0)]


@dataclass
class _Row:
    ask: Ask
    ids: list[int] = field(default_factory=list)


class Batch:
    """The rows being sampled. Row i of every tensor belongs to `rows[i]`."""

    def __init__(self, generator: Any, most: int, limits: Limits) -> None:
        self._model, self._limits, self._most = generator, limits, most
        self._device = next(generator.parameters()).device
        self.cache: SlotCache | None = None
        self.rows: list[_Row] = []
        self._mask = self._tensor([])
        self._stops = self._tensor(limits.stop_ids)

    def admit(self, asks: Sequence[Ask]) -> Found:
        """Computes the prompts, and the first token of each new row."""
        index: list[int] = []
        prompts: list[Sequence[int]] = []
        for ask, before in zip(asks, [None, *asks], strict=False):
            if before is None or ask.prompt != before.prompt:
                prompts.append(ask.prompt_ids)
            index.append(len(prompts) - 1)
        ids, mask = (one.to(self._device) for one in left_padded(prompts, self._limits.pad_id))
        cache = DynamicCache(config=self._model.config.get_text_config(decoder=True))
        places = (mask.cumsum(-1) - 1).clamp_(min=0)
        logits = self._logits(ids, mask, places, cache)
        rows, of_row = [_Row(ask) for ask in asks], self._tensor(index)
        tokens = self._draw(logits[of_row], rows)
        self._join(rows, mask[of_row], cache, of_row)
        yield from self._take(tokens, len(self.rows) - len(rows))

    def step(self) -> Found:
        """The next token of every row."""
        assert self.cache is not None
        self._mask = self.cache.before_token(self._mask)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], 1)
        last = self._tensor([row.ids[-1] for row in self.rows])[:, None]
        logits = self._logits(last, self._mask, self._mask.sum(-1, keepdim=True) - 1, self.cache)
        yield from self._take(self._draw(logits, self.rows), 0)

    def skip_to_last_token(self, columns: int) -> None:
        """As if all rows had drawn their tokens but one, in a cache of so many columns: for plans of memory."""
        assert self.cache is not None
        self.cache.widen(columns)
        self._mask = self._mask.new_ones(len(self.rows), columns)
        for row in self.rows:
            row.ids += [self._limits.pad_id] * (self._limits.most - 1 - len(row.ids))

    def _logits(self, ids: Tensor, mask: Tensor, places: Tensor, cache: Any) -> Tensor:
        """[B, V] at the last token of each row; the cache takes the new tokens in."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **logits_alone(self._model.config),
        )
        return output.logits[:, -1].float()

    def _draw(self, logits: Tensor, rows: Sequence[_Row]) -> list[int]:
        """The drawn tokens.

        Raises:
            FloatingPointError: a row's logits are not numbers.
        """
        early = [i for i, row in enumerate(rows) if len(row.ids) < self._limits.least]
        if early and self._limits.stop_ids:
            logits[self._tensor(early)[:, None], self._stops] = -torch.inf
        keys = self._tensor([row.ask.key for row in rows])
        tokens = self._limits.draw.tokens(logits, keys, self._tensor([len(row.ids) for row in rows]))
        drawn: list[int] = tokens.where(usable(logits), -1).tolist()
        if min(drawn) < 0:
            raise FloatingPointError(
                "the policy's logits are NaN or infinite, so no token can be sampled: its weights are broken. Lower "
                "the learning rate, or clip gradients (trainer.gradient_clip_val), and resume from a checkpoint before"
            )
        return drawn

    def _join(self, rows: list[_Row], mask: Tensor, cache: DynamicCache, index: Tensor) -> None:
        if self.cache is None:
            self.cache = SlotCache(len(cache.layers), self._most)
        if not self.rows:
            self._mask = mask[:0]
        self.cache.admit(cache, index)
        width = self.cache.get_seq_length()
        wide = mask.new_zeros(len(self.rows) + len(rows), width)
        wide[: len(self.rows), width - self._mask.shape[1] :] = self._mask
        wide[len(self.rows) :, width - mask.shape[1] :] = mask
        self._mask = wide
        self.rows += rows

    def _take(self, tokens: Sequence[int], start: int) -> Found:
        """Adds the drawn tokens to the rows from `start` on. Finished rows leave; the last ones take their places."""
        done = []
        for place, token in enumerate(tokens, start):
            ids = self.rows[place].ids
            ids.append(token)
            if token in self._limits.stop_ids or len(ids) == self._limits.most:
                done.append(place)
        finished = [self.rows[place] for place in done]
        left = len(self.rows) - len(done)
        holes = [place for place in done if place < left]
        movers = sorted(set(range(left, len(self.rows))) - set(done))
        if done and self.cache is not None:
            source, target = self._tensor(movers), self._tensor(holes)
            self.cache.move(source, target, left)
            self._mask[target] = self._mask[source]
            self._mask = self._mask[:left]
            for hole, mover in zip(holes, movers, strict=True):
                self.rows[hole] = self.rows[mover]
            del self.rows[left:]
        for row in finished:
            yield row.ask, row.ids

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)


def sample_plain(generator: Any, asks: Sequence[Ask], size: int, limits: Limits) -> Found:
    """Batch after batch with the library's `generate`, for models that keep other states than keys and values."""
    device = next(generator.parameters()).device
    for start in range(0, len(asks), size):
        some = asks[start : start + size]
        ids, mask = left_padded([ask.prompt_ids for ask in some], limits.pad_id)
        keys = torch.tensor([ask.key for ask in some], device=device)
        draw = Draw(limits.draw.temperature, limits.draw.top_k, limits.draw.top_p, keys, ids.shape[1])
        config = GenerationConfig(
            do_sample=False,  # `Draw` samples
            min_new_tokens=limits.least,
            max_new_tokens=limits.most,
            eos_token_id=list(limits.stop_ids) or None,
            pad_token_id=limits.pad_id,
            use_cache=True,
        )
        output = generator.generate(
            inputs=ids.to(device), attention_mask=mask.to(device), generation_config=config, logits_processor=[draw]
        )
        for ask, row in zip(some, output[:, ids.shape[1] :].tolist(), strict=True):
            stop = next((n for n, token in enumerate(row) if token in limits.stop_ids), len(row) - 1)
            yield ask, row[: stop + 1]


def left_padded(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, both [B, T] int64, padded on the left so that all rows end at the same place."""
    width = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences])
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences])
    return ids, mask
