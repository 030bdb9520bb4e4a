"""The judge that is a sequence-classification model with one output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_align.judges.base import PointwiseJudge
from lit_align.records import CandidateSet, prompt_text

_FILL = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0}
"""The model's inputs, with what fills up a shorter row."""


class RewardModelJudge(PointwiseJudge):
    """Scores with a reward model: any sequence-classification model with one output.

    The chat goes through the tokenizer's chat template where it has one; otherwise prompt and answer
    are a text pair. The model loads at the first score.

    Args:
        model: hub id or local folder.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; "auto" is that of the file.
        batch_size: answers scored at once; batches are sorted by length.
        max_length: tokens of prompt and answer together; a longer text loses its start, with a warning.
            None takes the limit of the tokenizer or the model.
        device: such as "cuda:1"; None is the current GPU where there is one.
        trust_remote_code: run code that the model brings along.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        batch_size: int = 16,
        max_length: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.identity = f"reward_model:{model}@{revision}" if revision else f"reward_model:{model}"
        self.batch_size = batch_size
        self.max_length = max_length
        self._device = device
        self._where: dict[str, Any] = {
            "pretrained_model_name_or_path": model,
            "revision": revision or "main",
            "trust_remote_code": trust_remote_code,
        }
        self._dtype = dtype
        self._warned = False

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """The model's outputs."""
        texts = [self._encode(one, candidate.text) for one in sets for candidate in one.candidates]
        scores = [0.0] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]["input_ids"]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, score in zip(batch, self._forward([texts[i] for i in batch]), strict=True):
                scores[i] = score
        rest = iter(scores)
        return [[next(rest) for _ in one.candidates] for one in sets]

    @torch.no_grad()
    def _forward(self, texts: list[dict[str, list[int]]]) -> list[float]:
        # A model with a causal body reads its score at the last token that is no padding, so the id that
        # fills up must not be one that a text ends with.
        pad_id = self._tokenizer.pad_token_id
        if pad_id is None:
            pad_id = min(set(range(len(texts) + 1)) - {text["input_ids"][-1] for text in texts})
        self._model.config.get_text_config().pad_token_id = pad_id
        width = max(len(text["input_ids"]) for text in texts)
        fill = {**_FILL, "input_ids": pad_id}
        columns = {
            name: torch.tensor([t[name] + [fill[name]] * (width - len(t[name])) for t in texts], device=self._at)
            for name in texts[0]
        }
        return self._model(**columns).logits[:, 0].float().tolist()

    def _encode(self, one: CandidateSet, answer: str) -> dict[str, list[int]]:
        """The model's inputs for one answer, each [T]."""
        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            chat = [{"role": m.role, "content": m.content} for m in one.prompt]
            chat.append({"role": "assistant", "content": answer})
            encoded = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)
        else:
            encoded = tokenizer(prompt_text(one.prompt), answer)
        if len(encoded["input_ids"]) > self._limit:
            self._warn_of_cut(len(encoded["input_ids"]))
            if not tokenizer.chat_template:
                encoded = tokenizer(prompt_text(one.prompt), answer, truncation=True, max_length=self._limit)
        return {name: list(encoded[name])[-self._limit :] for name in _FILL.keys() & encoded.keys()}

    def _warn_of_cut(self, tokens: int) -> None:
        if not self._warned:
            rank_zero_warn(
                f"{self.identity}: an answer with its prompt has {tokens} tokens and the limit is {self._limit}; "
                "the start of longer texts is cut away from here on"
            )
        self._warned = True

    @cached_property
    def _at(self) -> torch.device:
        return torch.device(self._device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(**self._where, truncation_side="left")

    @cached_property
    def _model(self) -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(**self._where, dtype=self._dtype)
        if model.config.num_labels != 1:
            raise ValueError(
                f"{self.identity} has {model.config.num_labels} outputs; a reward model has one "
                "(num_labels: 1 in its config)"
            )
        return model.eval().requires_grad_(False).to(self._at)

    @cached_property
    def _limit(self) -> int:
        if self.max_length is not None:
            return self.max_length
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return min(self._tokenizer.model_max_length, positions or self._tokenizer.model_max_length)
