"""Decodes prompts into sampled ids: with rows that come and go, or with `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from lit_align.policy.outputs import outputs_of
from lit_align.sampling.draw import Draw, usable
from lit_align.sampling.slots import SlotCache, fits_slots

_FREE_FRACTION = 4
"""New rows are admitted when a quarter of the batch is free, since each admission costs a forward pass of its own."""


@dataclass(frozen=True)
class CandidateRequest:
    """One candidate to draw.

    Args:
        prompt: index of its prompt.
        candidate: its index among the prompt's candidates.
        prompt_ids: the token ids of the prompt.
        key: seeds its random numbers, int64.
    """

    prompt: int
    candidate: int
    prompt_ids: Sequence[int]
    key: int

    @property
    def place(self) -> tuple[int, int]:
        """The index of its prompt and its own: unique, while equal prompts may have equal keys."""
        return self.prompt, self.candidate


FinishedCandidates = Iterator[tuple[CandidateRequest, list[int]]]
"""Candidates as they are finished, with their ids, the stop id included."""


@dataclass(frozen=True)
class Limits:
    """How candidates are drawn and when they end.

    Args:
        draw: draws the tokens.
        stop_ids: a candidate ends at the first of these.
        pad_id: fills up shorter rows.
        min_new_tokens: no candidate ends before this many tokens.
        max_new_tokens: candidates are cut at this many tokens.
    """

    draw: Draw
    stop_ids: tuple[int, ...]
    pad_id: int
    min_new_tokens: int
    max_new_tokens: int


def can_share(generator: Any) -> bool:
    """Whether :func:`sample_shared` can sample a model: its cache fits, and its forward has the needed arguments."""
    parameters = inspect.signature(generator.forward).parameters
    needed = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
    return needed <= parameters.keys() and fits_slots(generator.config)


def sample_shared(
    generator: Any, requests: Sequence[CandidateRequest], size: int, limits: Limits
) -> FinishedCandidates:
    """Samples with a batch of up to `size` rows that stays full.

    A prompt is computed once for all of its candidates, a finished row leaves at once, and new rows take its place.

    Args:
        generator: the model, in eval mode; see :func:`can_share`.
        requests: the candidates to draw, those of a prompt in a row, longest prompts first.
        size: rows at once.
        limits: how they are drawn and when they end.
    """
    batch = Batch(generator, min(size, len(requests)), limits)
    waiting = list(requests)
    while waiting or batch.rows:
        admitted = _next_admitted(waiting, size - len(batch.rows), size)
        if admitted:
            del waiting[: len(admitted)]
            yield from batch.admit(admitted)
        elif batch.rows:
            yield from batch.step()


def _next_admitted(waiting: Sequence[CandidateRequest], num_free: int, size: int) -> Sequence[CandidateRequest]:
    """The waiting requests that fit in, by whole prompts unless the batch is empty."""
    if num_free < max(1, size // _FREE_FRACTION):
        return []
    count = min(num_free, len(waiting))
    while 0 < count < len(waiting) and waiting[count].prompt == waiting[count - 1].prompt:
        count -= 1
    return waiting[: count or (min(num_free, len(waiting)) if num_free == size else 0)]


@dataclass
class _Row:
    request: CandidateRequest
    ids: list[int] = field(default_factory=list)


class Batch:
    """The rows being sampled. Row i of every tensor belongs to `rows[i]`."""

    def __init__(self, generator: Any, max_rows: int, limits: Limits) -> None:
        self._model = generator
        self._max_rows = max_rows
        self._limits = limits
        self._device = next(generator.parameters()).device
        self.cache: SlotCache | None = None
        self.rows: list[_Row] = []
        self._mask = self._tensor([])
        self._stops = self._tensor(limits.stop_ids)

    def admit(self, requests: Sequence[CandidateRequest]) -> FinishedCandidates:
        """Computes the prompts, and the first token of each new row."""
        index: list[int] = []
        prompts: list[Sequence[int]] = []
        for request, previous in zip(requests, [None, *requests], strict=False):
            if previous is None or request.prompt != previous.prompt:
                prompts.append(request.prompt_ids)
            index.append(len(prompts) - 1)
        ids, mask = left_padded(prompts, self._limits.pad_id)
        ids = ids.to(self._device)
        mask = mask.to(self._device)
        cache = DynamicCache(config=self._model.config.get_text_config(decoder=True))
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        logits = self._logits(ids, mask, positions, cache)
        rows = [_Row(request) for request in requests]
        prompt_of_row = self._tensor(index)
        tokens = self._draw(logits[prompt_of_row], rows)
        self._join(rows, mask[prompt_of_row], cache, prompt_of_row)
        yield from self._append(tokens, len(self.rows) - len(rows))

    def step(self) -> FinishedCandidates:
        """Draws the next token of every row."""
        assert self.cache is not None
        self._mask = self.cache.before_token(self._mask)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], 1)
        last = self._tensor([row.ids[-1] for row in self.rows])[:, None]
        logits = self._logits(last, self._mask, self._mask.sum(-1, keepdim=True) - 1, self.cache)
        yield from self._append(self._draw(logits, self.rows), 0)

    def skip_to_last_token(self, columns: int) -> None:
        """Pretends that all rows lack only their last token, in a cache of `columns` columns: for plans of memory."""
        assert self.cache is not None
        self.cache.widen(columns)
        self._mask = self._mask.new_ones(len(self.rows), columns)
        for row in self.rows:
            row.ids += [self._limits.pad_id] * (self._limits.max_new_tokens - 1 - len(row.ids))

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits [B, V] at the last token of each row; the cache takes in the new tokens."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **outputs_of(self._model.config),
        )
        return output.logits[:, -1].float()

    def _draw(self, logits: Tensor, rows: Sequence[_Row]) -> list[int]:
        """Draws a token for each row.

        Raises:
            FloatingPointError: a row's logits are NaN or infinite.
        """
        early = [i for i, row in enumerate(rows) if len(row.ids) < self._limits.min_new_tokens]
        if early and self._limits.stop_ids:
            logits[self._tensor(early)[:, None], self._stops] = -torch.inf
        keys = self._tensor([row.request.key for row in rows])
        tokens = self._limits.draw.tokens(logits, keys, self._tensor([len(row.ids) for row in rows]))
        next_tokens: list[int] = tokens.where(usable(logits), -1).tolist()
        if min(next_tokens) < 0:
            raise FloatingPointError(
                "the policy's logits are NaN or infinite, so no token can be sampled: its weights are broken. Lower "
                "the learning rate, or clip gradients (trainer.gradient_clip_val), and resume from a checkpoint before"
            )
        return next_tokens

    def _join(self, rows: list[_Row], mask: Tensor, cache: DynamicCache, index: Tensor) -> None:
        if self.cache is None:
            self.cache = SlotCache(len(cache.layers), self._max_rows)
        if not self.rows:
            self._mask = mask[:0]
        self.cache.admit(cache, index)
        width = self.cache.get_seq_length()
        wide = mask.new_zeros(len(self.rows) + len(rows), width)
        wide[: len(self.rows), width - self._mask.shape[1] :] = self._mask
        wide[len(self.rows) :, width - mask.shape[1] :] = mask
        self._mask = wide
        self.rows += rows

    def _append(self, tokens: Sequence[int], start: int) -> FinishedCandidates:
        """Adds the drawn tokens to the rows from `start` on. Finished rows leave; the last ones take their places."""
        # The batch stays without gaps: `num_left` rows go on. Those of them that lie behind the first `num_left`
        # places (movers) fill the places in front that finished rows leave (holes); there are as many of each.
        done = []
        for place, token in enumerate(tokens, start):
            ids = self.rows[place].ids
            ids.append(token)
            if token in self._limits.stop_ids or len(ids) == self._limits.max_new_tokens:
                done.append(place)
        finished = [self.rows[place] for place in done]
        num_left = len(self.rows) - len(done)
        holes = [place for place in done if place < num_left]
        movers = sorted(set(range(num_left, len(self.rows))) - set(done))
        if done and self.cache is not None:
            source = self._tensor(movers)
            target = self._tensor(holes)
            self.cache.move(source, target, num_left)
            self._mask[target] = self._mask[source]
            self._mask = self._mask[:num_left]
            for hole, mover in zip(holes, movers, strict=True):
                self.rows[hole] = self.rows[mover]
            del self.rows[num_left:]
        for row in finished:
            yield row.request, row.ids

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)


def sample_plain(generator: Any, requests: Sequence[CandidateRequest], size: int, limits: Limits) -> FinishedCandidates:
    """Samples batch by batch with the library's `generate`, for models that keep more than keys and values."""
    device = next(generator.parameters()).device
    for start in range(0, len(requests), size):
        chunk = requests[start : start + size]
        ids, mask = left_padded([request.prompt_ids for request in chunk], limits.pad_id)
        keys = torch.tensor([request.key for request in chunk], device=device)
        draw = Draw(limits.draw.temperature, limits.draw.top_k, limits.draw.top_p, keys, ids.shape[1])
        config = plain_config(limits.min_new_tokens, limits.max_new_tokens, limits.stop_ids, limits.pad_id)
        output = generator.generate(
            inputs=ids.to(device), attention_mask=mask.to(device), generation_config=config, logits_processor=[draw]
        )
        for request, row in zip(chunk, output[:, ids.shape[1] :].tolist(), strict=True):
            stop = next((n for n, token in enumerate(row) if token in limits.stop_ids), len(row) - 1)
            yield request, row[: stop + 1]


def plain_config(min_new_tokens: int, max_new_tokens: int, stop_ids: Collection[int], pad_id: int) -> GenerationConfig:
    """The settings of the library's `generate` where a :class:`Draw` among its logits processors does the sampling."""
    return GenerationConfig(
        do_sample=False,
        min_new_tokens=min_new_tokens,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )


def left_padded(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pads on the left, so that all rows end in the same column. Returns ids and mask, both [B, T] int64."""
    width = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences])
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences])
    return ids, mask
