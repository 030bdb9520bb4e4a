"""Samples one answer and hands its text on as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from lit_align.data.encoder import Encoder
from lit_align.sampling.base import TokenSampler, candidate_of_ids
from lit_align.sampling.decode import plain_config
from lit_align.sampling.draw import Draw
from lit_align.sampling.generate import undisturbed

_UNFINISHED = "\ufffd"
"""What a text ends with as long as only a part of a character's bytes is there."""


def stream_answer(
    model: nn.Module,
    encoder: Encoder,
    prompt_ids: Sequence[int],
    sampler: TokenSampler,
    key: int,
    emit: Callable[[str], object],
) -> str:
    """Samples an answer token by token.

    Args:
        model: the policy.
        encoder: that made the prompt.
        prompt_ids: the prompt, generation prompt included.
        sampler: its settings are the distribution to draw from.
        key: seeds the random numbers, int64.
        emit: gets each new piece of the text.

    Returns:
        The answer's text. A Ctrl-C ends it where it is.
    """
    pieces = _Pieces(encoder, emit)
    device = next(model.parameters()).device
    ids = torch.tensor([list(prompt_ids)], device=device)
    keys = torch.tensor([key], device=device)
    settings = plain_config(sampler.min_new_tokens, sampler.max_new_tokens, encoder.stop_ids, encoder.pad_id)
    draw = Draw(sampler.temperature, sampler.top_k, sampler.top_p, keys, ids.shape[1])
    with undisturbed(model) as generator, suppress(KeyboardInterrupt):  # what has come so far is the answer
        generator.generate(
            inputs=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=[draw],
            streamer=pieces,
        )
    pieces.end()
    return encoder.as_in_data(candidate_of_ids(pieces.ids, encoder.stop_ids, encoder.tokenizer)).text


class _Pieces(BaseStreamer):
    """Collects sampled ids, and emits what each adds to the text."""

    def __init__(self, encoder: Encoder, emit: Callable[[str], object]) -> None:
        self.ids: list[int] = []
        self._encoder = encoder
        self._emit = emit
        self._prompt_seen = False
        self._emitted = ""

    def put(self, value: Tensor) -> None:
        """Takes the prompt first, then a token at a time."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        self._emit_new(final=False)

    def end(self) -> None:
        """Emits what was held back."""
        self._emit_new(final=True)

    def _emit_new(self, final: bool) -> None:
        tokenizer: Any = self._encoder.tokenizer
        text = str(tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).lstrip()
        if text.startswith(self._emitted) and (final or not text.endswith(_UNFINISHED)):
            new = text[len(self._emitted) :]
            self._emitted = text
            if new:
                self._emit(new)
